"""Questions to a simulator, which `Crew.call` asks in a worker. Imports numpy, never torch."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from treadle.data.scenario import Scenario, Split
from treadle.simulators.protocol import Drawing, Scenes, SceneTeacher, Settling, Simulator, Teacher

COUNT, SCENARIOS, INSTRUCTIONS, VOCABULARY, SCENES, VERSIONS = (
    f"{__name__}:{name}" for name in ("count", "scenarios", "instructions", "vocabulary", "scenes", "versions")
)
PHYSICS, SETTLING, RENDERER = (f"{__name__}:{name}" for name in ("physics", "settling", "renderer"))


def count(simulator: Simulator, suite: str, split: Split) -> int:
    """How many scenarios a suite has."""
    return len(simulator.scenarios(suite, split))


def scenarios(simulator: Simulator, suite: str, split: Split, first: int, stop: int) -> list[Scenario]:
    """Some of a suite's scenarios."""
    return list(simulator.scenarios(suite, split)[first:stop])


def instructions(simulator: Simulator, wanted: Sequence[Scenario]) -> list[list[str]]:
    """Every instruction that could be asked in each scenario's scene."""
    return [list(simulator.instructions(scenario)) for scenario in wanted]


def vocabulary(simulator: Simulator) -> list[str] | None:
    """Texts that hold every word of the simulator's instructions; None where it brings no expert."""
    return list(simulator.vocabulary()) if isinstance(simulator, Teacher) else None


def scenes(simulator: Simulator, count: int, seed: int) -> Scenes | None:
    """Rendered scenes with the truth about them; None where the simulator has none."""
    return simulator.scenes(count, seed) if isinstance(simulator, SceneTeacher) else None


def versions(_: Simulator, packages: Sequence[str]) -> dict[str, str]:
    """The Python that simulates, and the versions of packages there; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def physics(simulator: Simulator) -> str | None:
    """What moves things while stored states come to rest; None where the simulator has no stored states."""
    return simulator.physics if isinstance(simulator, Settling) else None


def settling(simulator: Settling, wanted: Sequence[Scenario]) -> list[dict[str, float]]:
    """How far each thing slides while each scenario's stored state comes to rest."""
    return [simulator.settling(scenario) for scenario in wanted]


def renderer(simulator: Simulator) -> str | None:
    """What draws the frames; None where the simulator's packages are all that there is to it."""
    return simulator.describe_renderer() if isinstance(simulator, Drawing) else None
