"""From a configuration to a crew."""

from dataclasses import replace

from treadle.config.schema import CollectionConfig, SimulatorConfig
from treadle.cores import check_cores, usable_cores
from treadle.errors import ConfigError
from treadle.simulators.build import simulator_factory
from treadle.workers.crew import CrewPlan

FEW_CORES = 4
"""With fewer cores, simulator and policy use all of them in turn."""


def are_apart(simulate_cores: tuple[int, ...], generate_cores: tuple[int, ...]) -> bool:
    """Simulator and policy have cores of their own each."""
    return bool(simulate_cores and generate_cores) and not set(simulate_cores) & set(generate_cores)


def default_lanes(*, accelerated: bool, apart: bool, cores: int) -> int:
    """Lanes where `collection.lanes` leaves it open: more than one pays where two things can happen at once."""
    return 2 if accelerated or apart or cores >= FEW_CORES else 1


def plan_crew(
    simulator: SimulatorConfig,
    collection: CollectionConfig,
    *,
    accelerated: bool,
    slots: int | None = None,
    simulate_cores: tuple[int, ...] = (),
    generate_cores: tuple[int, ...] = (),
    gpus: tuple[int, ...] = (),
) -> CrewPlan:
    """The crew that a configuration asks for. Choices that it leaves open are made for this machine.

    Args:
        simulator: what is played.
        collection: how it shares the machine with the policy.
        accelerated: the policy is on a device of its own.
        slots: in place of the configured number.
        simulate_cores: cores that workers stay on; none for any.
        generate_cores: cores that the policy stays on; none for any.
        gpus: graphics cards that worker processes see; none for all.

    Raises:
        ConfigError: An unknown simulator, options that it does not take, or workers that cannot be.
        SimulatorError: The simulator's environment is not installed.
        PlacementError: Cores that this process may not be pinned to.
    """
    slots = simulator.slots if slots is None else slots
    check_cores("placement.simulate", simulate_cores)
    check_cores("placement.generate", generate_cores)
    own = {*simulate_cores, *generate_cores}
    cores = len(own if simulate_cores and generate_cores else usable_cores())
    apart = are_apart(simulate_cores, generate_cores)
    lanes = min(slots, collection.lanes or default_lanes(accelerated=accelerated, apart=apart, cores=cores))
    factory = simulator_factory(simulator)
    elsewhere = factory.interpreter is not None
    kind = collection.kind if collection.kind != "auto" else "processes" if elsewhere else "threads"
    if factory.interpreter is not None and kind == "threads":
        raise ConfigError(
            f"collection.kind 'threads' with simulator.name {simulator.name!r}, which lives in another Python "
            f"({factory.interpreter.python}); use collection.kind=processes, or leave it out"
        )
    workers = min(slots, collection.workers or (len(simulate_cores) if apart else cores if elsewhere else lanes))
    if not simulator.threads:
        busy_at_once = min(workers, lanes) if kind == "threads" else workers
        threads = max(1, (len(simulate_cores) or cores) // busy_at_once)
        factory = replace(factory, options=factory.options | {"threads": threads})
    return CrewPlan(
        factory,
        slots,
        lanes=lanes,
        workers=workers,
        kind=kind,
        cores=simulate_cores,
        gpus=gpus,
        timeout=collection.timeout,
    )
