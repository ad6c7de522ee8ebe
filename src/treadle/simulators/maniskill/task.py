"""What a task of ManiSkill supplies to the simulator. Imports numpy alone; ManiSkill only where `make` is called.

Shapes: n rows of an engine, S privileged state.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario, Split
from treadle.simulators.protocol import tool_motions

NAME = "maniskill"
ACTIONS = tool_motions(metres=1.0)
"""Of both control modes, `pd_ee_delta_pose` and BridgeData's: `to_controller` divides motions in metres and radians by
their scale."""


class Task(Protocol):
    """One kind of scene, its suites, and how it is controlled and scored."""

    name: str
    """Of the option `task`."""
    cameras: tuple[str, ...]
    control_hz: float
    """Control steps per second."""
    state_dim: int
    scale: tuple[float, float]
    """What 1 means to the controller: metres on each axis, radians about each axis."""
    segmentation: bool
    """Whether `picture` reads which thing each pixel shows."""
    camera_size: tuple[int, int] | None
    """Height and width of its cameras, in pixels; None where they draw at any size that is asked for."""
    success_bonus: float
    """What the shaped reward adds at success to the differences of the score."""

    def suites(self) -> tuple[str, ...]:
        """As `Simulator.suites`."""
        ...

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """As `Simulator.scenarios`."""
        ...

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """As `Simulator.instructions`."""
        ...

    def vocabulary(self) -> Sequence[str]:
        """Texts that hold every word of the instructions."""
        ...

    def make(self, rows: int, image_size: int, settings: dict[str, Any]) -> Any:
        """A ManiSkill environment of `rows` scenes, as the task has it and with `settings` of ManiSkill's over that.
        Steps neither draw nor reward unless these say so. Raises what ManiSkill raises.
        """
        ...

    def start(self, scenario: Scenario) -> tuple[int, dict[str, Any]]:
        """Seed and options of the environment's reset that lead to the scenario's start."""
        ...

    def score(self, environment: Any, seen: dict[str, Any], action: Any, info: dict[str, Any]) -> Any:
        """A tensor [rows], how far along each is, at most 1, in the present state."""
        ...

    def picture(self, environment: Any, textures: dict[str, Any], size: int | None) -> Any:
        """A uint8 tensor [rows, size, size, 3], on the device that rendered: what the policy sees of a camera's
        textures [rows, H, W, ...]. Without a size it is as large as those.
        """
        ...


def to_controller(actions: NDArray[np.float32], scale: tuple[float, float]) -> NDArray[np.float32]:
    """Actions [n, 7] in metres, radians and gripper opening (> 0.5 opens) as the controller of ManiSkill takes them."""
    translation, rotation = scale
    command = actions.copy()
    command[:, :3] /= translation
    command[:, 3:6] /= rotation
    command[:, 6] = np.where(actions[:, 6] > 0.5, 1, -1)
    return command
