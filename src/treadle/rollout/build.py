"""From a configuration to lanes."""

from dataclasses import replace
from typing import Any

from treadle.config.schema import CollectionConfig, SimulatorConfig
from treadle.cores import check_cores, usable_cores
from treadle.errors import ConfigError
from treadle.rollout.lanes import LanesPlan
from treadle.simulators.build import simulator_factory
from treadle.simulators.host import KeepFinal

FEW_CORES = 4
"""Below this many, simulator and policy each use all cores in turn."""


def plan_lanes(
    simulator: SimulatorConfig,
    collection: CollectionConfig,
    stream: dict[str, Any],
    keep_final: KeepFinal,
    *,
    accelerated: bool,
) -> LanesPlan:
    """What a configuration asks for, with every choice that it leaves open made for this machine.

    `accelerated`: the policy is on a device of its own.

    Raises:
        ConfigError: An unknown simulator, options that it does not take, or workers that cannot be.
        SimulatorError: The simulator's environment is not installed.
        PlacementError: Cores that this process may not use.
    """
    check_cores("collection.simulate_cores", collection.simulate_cores)
    check_cores("collection.generate_cores", collection.generate_cores)
    cores = len(usable_cores())
    apart = collection.simulate_cores and collection.generate_cores
    overlaps = accelerated or apart or cores >= FEW_CORES
    lanes = collection.lanes or min(simulator.slots, 2 if overlaps else 1)
    factory = simulator_factory(simulator)
    elsewhere = factory.interpreter is not None
    kind = collection.kind if collection.kind != "auto" else "processes" if elsewhere else "threads"
    if factory.interpreter is not None and kind == "threads":
        raise ConfigError(
            f"collection.kind 'threads' with simulator.name {simulator.name!r}, which lives in another Python "
            f"({factory.interpreter.python}); use collection.kind=processes, or leave it out"
        )
    workers = collection.workers or min(
        simulator.slots, len(collection.simulate_cores) or simulator.processes or (cores if elsewhere else lanes)
    )
    if not simulator.threads:
        busy_at_once = min(workers, lanes) if kind == "threads" else workers
        threads = max(1, (len(collection.simulate_cores) or cores) // busy_at_once)
        factory = replace(factory, options=factory.options | {"threads": threads})
    return LanesPlan(
        factory,
        simulator.slots,
        simulator.horizon,
        stream,
        keep_final,
        lanes=lanes,
        workers=workers,
        kind=kind,
        cores=collection.simulate_cores,
        timeout=collection.timeout,
    )
