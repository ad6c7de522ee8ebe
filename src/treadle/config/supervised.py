"""Settings of a supervised run: perception, then demonstrations."""

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from treadle.config.robot import ColumnsConfig, RobotConfig
from treadle.config.schema import CollectionConfig, EvaluationConfig, FineTuningConfig, RunConfig, SimulatorConfig
from treadle.config.section import Natural, NonNegative, Positive, Rate, Section, Share


class TinyModelConfig(Section):
    """Sizes of a policy made from nothing; the class is that of the 7B checkpoints."""

    kind: str = "openvla_oft"
    """openvla_oft decodes the tokens of a chunk in parallel, openvla one after another."""
    width: Positive = 64
    """Width of the Llama decoder."""
    layers: Positive = 3
    """Decoder layers."""
    heads: Positive = 2
    """Attention heads."""
    mlp: Positive = 256
    """Hidden units of the decoder's MLPs."""
    tower_widths: tuple[tuple[Positive, ...], ...] = ((24, 48, 64, 64), (16, 32, 48, 32))
    """Channels after each stride-2 convolution, for each of the two vision towers."""
    chunk: Positive = 4
    """Actions per decision."""


class GroundingConfig(Section):
    """Pre-training of perception on rendered scenes, without actions: the counterpart of a VLM's."""

    scenes: Positive = 60_000
    """Rendered scenes."""
    seed: Natural = 1
    """Seeds the scenes."""
    towers: str | None = None
    """Take vision towers and projector from this checkpoint, of the same architecture; None trains them."""
    detection_steps: Natural = 2000
    """Steps of the vision towers alone, finding every thing on the table; none where they are taken."""
    joint_steps: Natural = 3000
    """Steps of the whole policy, finding the two things that an instruction names."""
    batch: Positive = 256
    """Scenes per step."""
    learning_rate: Rate = 2e-3
    """Top of the cosine schedule of each of the two."""
    bfloat16: bool = True
    """Compute the towers in bfloat16 where the device does so in hardware; weights stay float32."""


class DemonstrationConfig(Section):
    """Episodes of the simulator's scripted expert."""

    episodes: Positive = 200
    """How many, from the first scenarios of the training split."""
    seed: Natural = 0
    """Seeds the noise."""
    miss_probability: Share = 0.0
    """Share of episodes with an injected miss, so that they show a recovery; the miss is imitated too."""
    jitter: NonNegative = 0.004
    """Standard deviation, in metres, of noise on the translations that are played. What is recorded is the expert's own
    action in the state that came of it, so that demonstrations show how to correct an error."""


class ImitationConfig(Section):
    """Supervised fine-tuning on demonstrations, by cross-entropy on action tokens."""

    steps: Positive = 1500
    """Optimizer steps, over which the rate decays by a cosine to zero."""
    batch: Positive = 256
    """Decisions per step."""
    learning_rate: Rate = 1e-3
    """Top of the schedule."""
    label_width: NonNegative = 0.0
    """Spread each label over neighbouring bins, by a Gaussian of this standard deviation; 0 is plain cross-entropy."""
    freeze_vision: bool = True
    """Keep towers and projector as they are; their features are then computed once."""
    grounding_share: Share = 0.25
    """Scenes mixed into each batch, as a share of it, so that perception is not forgotten."""
    grounding_weight: Rate = 1.0
    """Weight of their loss beside the cross-entropy."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay."""
    statistics: Literal["checkpoint", "dataset"] = "checkpoint"
    """What scales actions and proprioception of a checkpoint that is fine-tuned: its own statistics, or those of the
    data set, which are then saved in their place under the simulator's name."""
    held: bool = False
    """Past an episode's end, let targets such as joint angles count as what they were last. Else places there do not
    count. Without targets they always do: motions are 0."""
    save_every: Natural = 500
    """Steps between two checkpoints, rounded up to a multiple of 50. From the last one the same command goes on when it
    was cut short. It holds the weights that are trained and the optimizer's state. 0 saves none."""
    cache_gb: NonNegative = 4.0
    """Keep what the policy reads of the data set if it takes at most so many GB; a larger one is read from its files,
    batch by batch."""

    @model_validator(mode="after")
    def _grounding_fits(self) -> Self:
        if self.grounding_share and not self.freeze_vision:
            raise ValueError(
                f"grounding_share {self.grounding_share} with freeze_vision false: scenes are mixed in as features of "
                "frozen towers; use grounding_share 0, or freeze_vision true"
            )
        return self


class SupervisedConfig(RunConfig):
    """A supervised run: perception, then demonstrations."""

    checkpoint: str | None = None
    """Start from this checkpoint, without grounding; None makes a tiny policy from nothing."""
    dataset: Path | None = None
    """Demonstrations in the LeRobot format; None lets the simulator's scripted expert play them."""
    cameras: tuple[str, ...] = ()
    """Cameras of the data set, in the order of the simulator's; none takes those of the same names, or the only one of
    both. Of a robot of your own, none takes all."""
    columns: ColumnsConfig = ColumnsConfig()
    robot: RobotConfig = RobotConfig()
    policy: FineTuningConfig = FineTuningConfig()
    """How that checkpoint is fine-tuned; a policy made from nothing is trained whole, in float32."""
    model: TinyModelConfig = TinyModelConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    collection: CollectionConfig = CollectionConfig()
    grounding: GroundingConfig = GroundingConfig()
    demonstrations: DemonstrationConfig = DemonstrationConfig()
    imitation: ImitationConfig = ImitationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _robot_fits(self) -> Self:
        if self.robot.name is not None and self.dataset is None:
            raise ValueError(
                f"robot.name {self.robot.name!r} without a dataset: a robot of your own has no expert to learn from; "
                "give the path of its data set"
            )
        return self
