# ManiSkill is in an environment of its own.
# pyright: reportMissingImports=false

"""ManiSkill's own tasks of a Panda arm that need no download, with the instruction that each lacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from treadle.data.scenario import Scenario, Split
from treadle.simulators.checks import check_suite
from treadle.simulators.enumeration import Enumeration
from treadle.simulators.maniskill.task import NAME

LENGTH = 1_000_000
"""Scenarios of each split."""

_CONTROL = "pd_ee_delta_pose"


@dataclass(slots=True)
class BuiltIn:
    """A task that ManiSkill registers; a scenario is a seed of its reset."""

    name: str
    instruction: str
    state_dim: int
    cameras: tuple[str, ...] = ("base_camera",)
    control_hz: float = 20.0
    scale: tuple[float, float] = (0.1, -0.1)
    """ManiSkill's controller multiplies rotations by their lower bound, which turns their sign."""
    segmentation: bool = False
    camera_size: tuple[int, int] | None = None
    success_bonus: float = 1.0

    def suites(self) -> tuple[str, ...]:
        """Training alone: these tasks have no published distribution beside it."""
        return ("train",)

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """A million starts; even seeds of ManiSkill's reset are training's, odd ones evaluation's."""
        check_suite(f"{NAME}: task {self.name}", suite, split, self.suites())
        return Enumeration(LENGTH, lambda index: Scenario(NAME, suite, self.name, split, index, self.instruction))

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """The one of the task."""
        return (self.instruction,)

    def vocabulary(self) -> Sequence[str]:
        """The instructions of all these tasks, so that one policy can be trained on several."""
        return [task.instruction for task in BUILT_IN.values()]

    def make(self, rows: int, image_size: int, settings: dict[str, Any]) -> Any:
        """The registered environment, with goals that ManiSkill hides from its cameras left visible."""
        import gymnasium
        import mani_skill.envs

        assert mani_skill.envs  # importing it registers the tasks
        return gymnasium.make(
            self.name,
            num_envs=rows,
            control_mode=_CONTROL,
            sensor_configs={"width": image_size, "height": image_size},
            **{"obs_mode": "state_dict", "reward_mode": "none", **settings},
        ).unwrapped

    def start(self, scenario: Scenario) -> tuple[int, dict[str, Any]]:
        """A seed of its own for each index of each split."""
        return 2 * scenario.index + (scenario.split == "evaluation"), {}

    def score(self, environment: Any, seen: dict[str, Any], action: Any, info: dict[str, Any]) -> Any:
        """ManiSkill's dense reward, normalised to 1 at success."""
        return environment.compute_normalized_dense_reward(obs=seen, action=action, info=info)

    def picture(self, environment: Any, textures: dict[str, Any], size: int | None) -> Any:
        """As rendered, which is at the right size."""
        return textures["rgb"]


BUILT_IN = {
    task.name: task
    for task in (
        BuiltIn("PickCube-v1", "pick up the red cube and hold it at the green ball", 42),
        BuiltIn("PushCube-v1", "push the blue cube onto the target", 35),
        BuiltIn("StackCube-v1", "stack the red cube on the green cube", 48),
        BuiltIn("PullCube-v1", "pull the blue cube back onto the target", 35),
        BuiltIn("PlaceSphere-v1", "place the blue ball in the bin", 39),
        BuiltIn("PokeCube-v1", "poke the cube with the peg", 54),
        BuiltIn("RollBall-v1", "roll the ball to the target", 44),
        BuiltIn("LiftPegUpright-v1", "lift the peg and stand it upright", 32),
        BuiltIn("PegInsertionSide-v1", "insert the peg into the hole in the box", 43),
        BuiltIn("PullCubeTool-v1", "pull the cube closer with the hooked tool", 39),
    )
}
