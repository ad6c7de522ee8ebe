"""Settings of a reinforcement-learning run, and those that every run has: type, default and a line of documentation,
which `--help` and the docs are generated from.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from treadle.config.algorithm import AlgorithmConfig, DataNeeds
from treadle.config.on_policy import PPOConfig
from treadle.config.placement import PlacementConfig, RuntimeConfig
from treadle.config.preflight import PreflightConfig
from treadle.config.section import Natural, NonNegative, Positive, Rate, Section, Share


class SimulatorConfig(Section):
    """Which simulator, and how many episodes it plays at once."""

    name: str = "tabletop"
    """An installed simulator (`treadle doctor` lists them) or `package.module:Class`."""
    slots: Annotated[int, Field(gt=0, le=2**16)] = 256
    """Episodes played at the same time."""
    horizon: Positive = 80
    """Control steps after which an episode is cut."""
    threads: Natural = 0
    """Threads that step the simulator; 0 takes every core. In worker processes it is of each, their software renderers
    included, and 0 divides the cores."""
    options: dict[str, Any] = {}
    """Further keyword arguments of the simulator's class."""
    python: str | None = None
    """Python interpreter that its worker processes run in; none takes the environment that `treadle simulators install`
    made for it, or this interpreter."""


class CollectionConfig(Section):
    """How simulator and policy share the machine while episodes are played, in training and in evaluation."""

    lanes: Natural = 0
    """Groups of slots that advance on their own, so that one is simulated while the policy thinks about another; 1 is
    lockstep. 0 chooses: 2 with a graphics card, with separate cores for the two, or from 4 cores on; else 1, for there
    both use every core in turn. Results do not depend on it, up to rounding."""
    workers: Natural = 0
    """Threads or processes that play the lanes; fewer than lanes take turns, more divide each lane. 0 chooses: one for
    each core of `placement.simulate`, else one for each lane, or for each core where the simulator lives in another
    Python."""
    kind: Literal["auto", "threads", "processes"] = "auto"
    """What workers are: threads suit simulators that release Python's lock, processes all others. `auto` takes threads,
    unless the simulator lives in another Python."""
    batch: Positive = 1
    """Ready lanes that one forward pass serves at most. Above 1, timing decides the shapes of batches, and runs are
    repeatable up to rounding only."""
    timeout: Rate = 600.0
    """Seconds that a worker may take to build a simulator or to play a chunk, before it is replaced as hung."""
    trace_iterations: Natural = 3
    """Latest iterations whose timeline is kept in `trace.json`, for the report and for Perfetto; 0 keeps none."""


class SamplingConfig(Section):
    """The distribution that actions are drawn from."""

    temperature: NonNegative = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: Natural = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep the most likely tokens up to this probability."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021)."""

    rank: Natural = 0
    """Rank of the adapters, which are then all that is trained of the main weights; 0 trains the weights themselves."""
    alpha: Rate | None = None
    """Adapters are scaled by alpha / rank; none takes the rank, as published."""
    targets: tuple[str, ...] = ()
    """Layers that get one, by the last part of their names; none takes the published ones. Frozen vision gets none."""


class LoadingConfig(Section):
    """How a checkpoint is read."""

    statistics: str | None = None
    """Key of the action statistics; may be left out where the checkpoint has one only."""
    kind: str | None = None
    """openvla or openvla_oft, for a published directory that does not tell (a warning says so)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; `auto` keeps the checkpoint's. What is trained in bfloat16 has a float32 master."""
    options: dict[str, Any] = {}
    """Settings that the checkpoint lacks or has otherwise, such as chunk, prompt_length, center_crop or head."""
    compile: bool = False
    """Act through compiled transformer blocks (`torch.compile`): fewer kernels, after up to minutes of compiling."""


class FineTuningConfig(LoadingConfig):
    """How a policy is fine-tuned, supervised or with rewards."""

    lora: LoraConfig = LoraConfig()
    """Adapters in place of full fine-tuning."""
    gradient_checkpointing: bool = False
    """Compute transformer blocks again in the backward pass instead of keeping what is in them: less memory, more
    time, the same gradients."""


class PolicyConfig(FineTuningConfig):
    """Which policy is trained, and which of its parts."""

    checkpoint: str = "tabletop-base"
    """A Hugging Face directory, or the name of a checkpoint that ships with Treadle."""
    freeze_vision: bool = True
    """Keep towers and projector as they are; their features are then computed once per decision and stored."""
    frozen_dimensions: tuple[Natural, ...] = ()
    """Action dimensions that the simulator ignores: their tokens get no gradient. Dimensions that never move in the
    checkpoint's statistics get none either."""
    sampling: SamplingConfig = SamplingConfig()
    """How actions are sampled in rollouts, and their log-probs defined in training."""


class CriticConfig(Section):
    """What estimates values."""

    kind: Literal["value_head", "privileged", "none"] = "value_head"
    """A head on the policy's last prompt token, as published, or a small network on the simulator's state, or none at
    all, for an estimator of your own that reads no values. Episode estimators have none whatever is set here."""
    learning_rate: Rate = 3e-3
    """Of the value head or the network."""
    coefficient: Rate = 0.5
    """Weight of the value loss beside the policy loss, where they share parameters."""
    clip: Rate = 0.2
    """Value predictions move at most this far from the rollout's in the clipped loss."""
    huber_delta: Rate = 10.0
    """Beyond this error the value loss is linear."""
    width: Positive = 128
    """Hidden units of the privileged network's two layers."""
    epochs: Positive = 4
    """Passes of the privileged network over each rollout."""
    warmup_iterations: Natural = 1
    """First iterations in which the critic learns and the policy stands still."""


class OptimizerConfig(Section):
    """AdamW, and the schedule of its rate."""

    learning_rate: Rate = 1e-4
    """Of the policy, at the top of its schedule."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the rate decays after its warm-up."""
    final_share: Share = 1.0
    """The rate decays to this share at the last iteration; 1 keeps it constant."""
    warmup_iterations: Natural = 0
    """Iterations of linear growth from 0."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of AdamW's moments."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay."""
    gradient_norm: Rate = 1.0
    """Gradients are clipped to this norm."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per iteration of the moving average of weights that is evaluated at the end; 0 takes the last weights."""


class EvaluationConfig(Section):
    """What is measured before and after training."""

    suites: tuple[str, ...] = ("train", "vision", "semantic", "execution")
    """Suites to evaluate; `train` counts as in distribution. Scenarios are the suite's evaluation split, in order."""
    episodes: Positive = 256
    """Episodes per suite, each another scenario."""
    slots: Positive = 256
    """Episodes played at the same time at most; a run evaluates in the simulators that it trains with, which have
    simulator.slots."""
    horizon: Positive | None = None
    """Control steps after which an evaluated episode is cut; none takes simulator.horizon."""
    horizons: dict[str, Positive] = {}
    """Horizons of single suites, in place of evaluation.horizon."""
    every: Natural = 0
    """Iterations between evaluations while training; the best policy that they find, by the first of the suites, is
    kept in `best`. 0 evaluates before and after training alone."""
    repeats: Positive = 1
    """Times that each scenario is played, each time with other noise; for policies that sample."""
    success: Literal["once", "end"] = "once"
    """Which rule the success rate follows: the goal held at some time, or after the last action. Both are recorded."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    """How actions are chosen in evaluation."""
    videos: Natural = 4
    """Episodes that are filmed: in training the first in-distribution scenarios, before and after; by `treadle eval`
    half of them failures and half successes."""

    def horizon_of(self, suite: str, default: int) -> int:
        """Control steps after which an episode of a suite is cut; `default` is `simulator.horizon`."""
        return self.horizons.get(suite, self.horizon or default)

    @model_validator(mode="after")
    def _repeats_differ(self) -> Self:
        if self.repeats > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"evaluation.repeats {self.repeats} with evaluation.sampling.temperature 0: a greedy policy plays a "
                "scenario the same way each time; use evaluation.repeats=1, or a temperature above 0"
            )
        return self


class RunConfig(Section):
    """What every run has."""

    name: str = "run"
    """Name of the run's folder below `output`."""
    output: Path = Path("runs")
    """Folder that holds runs."""
    seed: Natural = 0
    """Seeds everything random in the run."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`."""
    torch_threads: Natural = 0
    """Threads of torch on a CPU; 0 takes every core."""


class TrainConfig(RunConfig):
    """A reinforcement-learning run."""

    iterations: Positive = 100
    """Rollouts and updates."""
    decisions: Positive = 10
    """Decisions per slot and rollout."""
    overlap: Literal["none", "stream", "async"] = "none"
    """What is played while the policy trains. none: nothing. stream: the rest of the same update's rollouts, by the
    same weights; see `algorithm.rounds`. async: the rollouts of the next updates, by older weights."""
    max_staleness: Positive = 1
    """Updates by which the weights that play are older than those that learn, with overlap async. It is not a limit
    alone: rollouts are always of the version so many updates before, so runs repeat."""
    save_every: Natural = 10
    """Iterations between checkpoints; 0 saves at the end only."""
    keep_checkpoints: Positive = 2
    """How many of the latest checkpoints stay on disk."""
    save_in_background: bool = False
    """Write checkpoints while training goes on, from a copy in host memory."""
    wandb: bool = False
    """Also send the numbers of each iteration to Weights & Biases, project WANDB_PROJECT or `treadle`."""
    simulator: SimulatorConfig = SimulatorConfig()
    collection: CollectionConfig = CollectionConfig()
    placement: PlacementConfig = PlacementConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    policy: PolicyConfig = PolicyConfig()
    preflight: PreflightConfig = PreflightConfig()
    algorithm: SerializeAsAny[AlgorithmConfig] = PPOConfig()
    critic: CriticConfig = CriticConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def evaluation_horizon(self) -> int:
        """Control steps after which an evaluated episode is cut."""
        return self.evaluation.horizon or self.simulator.horizon

    @property
    def needs(self) -> DataNeeds:
        """What rollouts must hold: what the algorithm asks for, without values where there is no critic."""
        needs = self.algorithm.needs
        return replace(needs, values=False, keep_final="none") if self.critic.kind == "none" and needs.values else needs

    @property
    def has_critic(self) -> bool:
        """Whether values are estimated."""
        return self.needs.values

    @property
    def critic_warmup(self) -> int:
        """First iterations in which the critic learns and the policy stands still."""
        return self.critic.warmup_iterations if self.has_critic else 0

    @model_validator(mode="after")
    def _collection_fits(self) -> Self:
        for name in ("lanes", "workers"):
            count = getattr(self.collection, name)
            if count > self.simulator.slots:
                raise ValueError(
                    f"collection.{name} {count} with simulator.slots {self.simulator.slots}: each needs a slot at "
                    f"least; use collection.{name} of at most {self.simulator.slots}, or more slots"
                )
        return self

    @model_validator(mode="after")
    def _preflight_fits(self) -> Self:
        if self.preflight.episodes and self.runtime.address is not None:
            raise ValueError(
                f"preflight.episodes {self.preflight.episodes} with runtime.address: it is played in the process that "
                "begins the run, which may have no device; try it in a run without an address, and use "
                "preflight.episodes=0"
            )
        return self

    @property
    def staleness(self) -> int:
        """Updates by which rollouts may be older than the weights that learn from them. Refills are known only when the
        update begins, so nothing is played further ahead of them.
        """
        if self.overlap != "async":
            return 0
        return min(self.max_staleness, 1) if self.needs.refills else self.max_staleness

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.max_staleness > 1 and self.overlap != "async":
            raise ValueError(
                f"max_staleness {self.max_staleness} with overlap {self.overlap!r}: only overlap 'async' plays with "
                "older weights; use overlap=async, or leave max_staleness out"
            )
        return self

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        self.algorithm.check(self)
        if self.critic_warmup >= self.iterations:
            raise ValueError(
                f"critic.warmup_iterations {self.critic_warmup} must be below iterations {self.iterations}, for the "
                f"critic alone learns in them: use iterations={self.critic_warmup + 1} or more, or "
                "critic.warmup_iterations=0"
            )
        return self
