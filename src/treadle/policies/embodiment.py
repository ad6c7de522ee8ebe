"""What a policy that was trained for a robot of your own is shown and what its actions mean, kept beside its weights.

Shapes: n samples, C actions of a chunk, A action dimensions, P proprioception.
"""

from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from treadle.config.robot import RobotConfig
from treadle.data.demonstrations import Demonstrations
from treadle.errors import CheckpointError, ConfigError
from treadle.files import to_json, write_atomically
from treadle.reading import read_json
from treadle.simulators.protocol import ActionDimension, ActionKind, SimulatorSpec
from treadle.tables import Table, read_table

FILE = "embodiment.json"
Text = Annotated[str, Field(max_length=200)]


class Dimension(Table):
    """A dimension of an action."""

    name: Text
    kind: ActionKind


class Embodiment(Table):
    """`embodiment.json`."""

    name: Text
    cameras: list[Text]
    """In the order in which the policy sees them."""
    sizes: list[list[Annotated[int, Field(gt=0)]]]
    """[H, W] of each camera."""
    proprioception: Annotated[int, Field(ge=0)]
    """P"""
    actions: list[Dimension]
    deltas: bool = False
    """Targets are learned as differences from the proprioception at the decision."""
    fps: Annotated[int, Field(gt=0)]

    @classmethod
    def of(cls, robot: RobotConfig, demonstrations: Demonstrations, names: tuple[str, ...]) -> Self:
        """That of a data set. Raises ConfigError for grippers that its actions do not have."""
        if wrong := [place for place in robot.grippers if place >= len(names)]:
            raise ConfigError(f"robot.grippers: found {wrong[0]}; actions have the dimensions 0 to {len(names) - 1}")
        return cls(
            name=robot.name or "robot",
            cameras=list(demonstrations.cameras),
            sizes=[list(size) for size in demonstrations.sizes],
            proprioception=demonstrations.state.shape[1],
            actions=[
                Dimension(name=name, kind="gripper" if place in robot.grippers else robot.actions)
                for place, name in enumerate(names)
            ],
            deltas=robot.deltas,
            fps=demonstrations.fps,
        )

    @property
    def dimensions(self) -> tuple[ActionDimension, ...]:
        """What each dimension of an action means."""
        return tuple(ActionDimension(dimension.name, dimension.kind) for dimension in self.actions)

    @property
    def spec(self) -> SimulatorSpec:
        """The same as a simulator has it, for a policy from nothing. Raises ConfigError if cameras differ in size."""
        if any(size != self.sizes[0] for size in self.sizes):
            raise ConfigError(
                f"cameras of several sizes, {self.sizes}; a policy from nothing takes one size: choose some by "
                "cameras, or start from a checkpoint"
            )
        height, width = self.sizes[0]
        return SimulatorSpec(
            name=self.name,
            cameras=tuple(self.cameras),
            height=height,
            width=width,
            actions=self.dimensions,
            proprioception_dim=self.proprioception,
            state_dim=0,
            horizon=1,
            control_hz=float(self.fps),
        )

    def restore(self, actions: NDArray[np.float32], state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions [n, C, A] as the robot takes them, of those that the policy decided in states [n, P]."""
        if not self.deltas:
            return actions
        absolute = np.array([dimension.kind == "absolute" for dimension in self.actions])
        return actions + np.where(absolute, state[:, : len(absolute)], np.float32(0))[:, None]

    def write(self, folder: Path) -> None:
        """Put it into the folder of a policy. Raises OutputError."""
        write_atomically(folder / FILE, to_json(self.model_dump()) + "\n")


def read_embodiment(folder: Path) -> Embodiment | None:
    """That of a policy's folder, None where there is none. Raises CheckpointError."""
    path = folder / FILE
    return read_table(Embodiment, read_json(path, CheckpointError), path) if path.is_file() else None
