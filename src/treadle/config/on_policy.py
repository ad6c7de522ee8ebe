"""Settings of PPO and GRPO: what is collected, how advantages are estimated, and the loss."""

from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from treadle.config.algorithm import AlgorithmConfig, DataNeeds
from treadle.config.section import Natural, NonNegative, Positive, Rate, Section, Share
from treadle.errors import did_you_mean

SCORE_ESTIMATORS = ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline")
"""Compare the scores of the episodes of one scenario, and give every action of an episode the same advantage."""
TO_GO_ESTIMATORS = ("rloo_to_go", "rloo_alike")
"""Compare what follows each action of those episodes."""
GROUP_ESTIMATORS = (*SCORE_ESTIMATORS, *TO_GO_ESTIMATORS)
"""Compare the episodes of one scenario."""
EPISODE_ESTIMATORS = (*GROUP_ESTIMATORS, "reinforce_pp")
"""Need whole episodes, and no critic."""
ESTIMATORS = ("gae", *EPISODE_ESTIMATORS)


class GroupFilterConfig(Section):
    """Which groups of episodes are worth an update. Others are skipped: no forward or backward pass is spent on them.
    Groups whose scores are all equal have no gradient, and are always skipped.
    """

    low: Share = 0.0
    """Skip groups with a lower success rate."""
    high: Share = 1.0
    """Skip groups with a higher success rate."""
    refills: Natural = 0
    """Further rollouts, at most, while fewer groups remain than `rounds` rollouts play."""

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}: every group would be skipped")
        return self


class ReferenceConfig(Section):
    """A penalty on the divergence from the policy that the run began with, kept frozen."""

    coefficient: NonNegative = 0.0
    """Weight of KL(policy || reference) in the loss; 0 keeps no reference."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """How it is estimated from samples: unbiased; of little variance; unbiased and never negative."""
    target: Rate | None = None
    """Adapt the coefficient after every iteration so that the divergence comes near this; none keeps it fixed."""

    @model_validator(mode="after")
    def _target_has_a_coefficient(self) -> Self:
        if self.target is not None and not self.coefficient:
            raise ValueError(f"target {self.target} with coefficient 0: nothing to adapt; give a first coefficient")
        return self


class OnPolicyConfig(AlgorithmConfig):
    """What is made of rollouts, in an update that follows each of them."""

    implementation: ClassVar[str] = "treadle.training.on_policy.ppo:PPO"

    estimator: str = "gae"
    """Of advantages: gae, grpo, dr_grpo, rloo, rloo_to_go, rloo_alike, reinforce_pp, reinforce_pp_baseline, or
    `package.module:function`."""
    loss: str = "clip"
    """Of the policy: clip, or `package.module:function`."""
    partial_reset: bool = True
    """A slot begins its next episode as soon as one ends; false plays one episode per slot and rollout."""
    group_size: Positive = 1
    """Slots that play the same scenario; needs partial_reset false."""
    rounds: Positive = 1
    """Rollouts per update."""
    filter: GroupFilterConfig = GroupFilterConfig()
    """Which groups are worth an update."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Discount per entry of the reward level."""
    gae_lambda: Share = 0.95
    """Lambda of generalised advantage estimation."""
    reward_level: Literal["action", "chunk"] = "action"
    """Time axis of rewards and advantages."""
    value_level: Literal["action", "chunk"] | None = None
    """A value for each action of a chunk, or one for the chunk; none follows reward_level."""
    ratio_level: Literal["token", "action", "chunk", "sequence"] = "token"
    """What one importance ratio covers; sequence is the geometric mean of a chunk's tokens (GSPO)."""
    bootstrap: Literal["truncation", "always"] = "truncation"
    """Which endings are followed by the value of the last observation."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio is clipped below 1 - clip_low."""
    clip_high: Rate = 0.28
    """The ratio is clipped above 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on the weight of negative advantages; 3 is usual."""
    decoupled: bool = True
    """Clip around the policy as it is at the start of the update, not the older one that acted, and weigh data by how
    likely the former finds it. Data of the present policy, all of it unless `overlap` is async, stays as it is."""
    stale_weight_cap: Rate = 2.0
    """That weight is cut above this."""
    entropy_coefficient: NonNegative = 0.0
    """Weight of the entropy bonus."""
    reference: ReferenceConfig = ReferenceConfig()
    """Divergence from a frozen reference."""
    normalize_advantages: bool = True
    """Advantages to mean 0 and standard deviation 1 over all valid entries of the batch."""
    trajectory_weights: bool = False
    """Every episode weighs the same in the loss, however long; false weighs every action the same."""
    chunk_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each minibatch's decisions, drawn at random, that is propagated back, with a weight that keeps the
    expected gradient."""
    epochs: Positive = 2
    """Passes over each batch."""
    minibatch: Positive = 512
    """Decisions per optimizer step; a remainder makes a smaller last step."""
    micro_batch: Positive = 256
    """Decisions per forward and backward pass; changes memory, never the gradient."""
    target_kl: Rate | None = None
    """Stop the epochs of an iteration when the approximate KL to the rollout's policy passes this."""
    log_prob_alarm: Rate = 0.05
    """Warn when the log-probs of rollout and trainer differ by more nats in the mean, before the first step."""
    signal_every: Natural = 2
    """Iterations from one measurement of `update/signal_share` to the next; 0 measures never."""

    def count_steps(self, decisions: int) -> int:
        """See `AlgorithmConfig.count_steps`."""
        return self.epochs * -(-decisions * self.rounds // self.minibatch)

    @property
    def needs(self) -> DataNeeds:
        """What rollouts must hold. Episode estimators read no values, and none is needed after an episode's end."""
        values = self.estimator not in EPISODE_ESTIMATORS
        valued = "ended" if self.bootstrap == "always" else "truncated"
        return DataNeeds(
            self.partial_reset,
            self.group_size,
            values,
            self.values_per_action,
            valued if values else "none",
            rollouts=self.rounds,
            refills=self.filter.refills,
        )

    def not_streamed(self, config: Any) -> str | None:
        """See `AlgorithmConfig.not_streamed`. The gradient is a sum over decisions if one step takes all, and no term
        depends on others.
        """
        rollouts = self.rounds + self.filter.refills
        steps = self.epochs * -(-config.decisions * config.simulator.slots * rollouts // self.minibatch)
        if rollouts == 1:
            return "algorithm.rounds 1 is one rollout alone"
        if steps > 1:
            return f"algorithm.minibatch {self.minibatch} and epochs {self.epochs} make up to {steps} steps of it"
        if self.normalize_advantages:
            return "algorithm.normalize_advantages takes the moments of the whole batch"
        if config.has_critic and config.critic.kind == "value_head":
            return "critic.kind value_head adds a loss with a divisor of its own"
        if self.chunk_share < 1:
            return "algorithm.chunk_share draws from the whole batch"
        if ":" in self.loss:
            return "algorithm.loss is another package's, and may depend on the whole batch"
        return None

    def check(self, config: Any) -> None:
        """Raise ValueError where the estimator reads values and there is no critic, and where rollouts are greedy."""
        if config.policy.sampling.temperature == 0:
            raise ValueError(
                f"policy.sampling.temperature 0 with algorithm.kind {self.kind!r}: a greedy policy tries nothing, so "
                "there is nothing to compare; use a temperature above 0 (evaluation.sampling is set apart from it)"
            )
        if self.estimator == "gae" and not config.has_critic:
            raise ValueError(
                "critic.kind 'none' with algorithm.estimator 'gae', which reads values; use critic.kind 'value_head' "
                "or 'privileged', or another estimator"
            )

    @property
    def advantages_per_action(self) -> bool:
        """An advantage for each action; scores of episodes are given per chunk, which suits every ratio."""
        return self.reward_level == "action" and self.estimator not in SCORE_ESTIMATORS

    @property
    def values_per_action(self) -> bool:
        """The critic values each action of a chunk, not the chunk."""
        return (self.value_level or self.reward_level) == "action"

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if self.advantages_per_action and self.ratio_level in ("chunk", "sequence"):
            raise ValueError(
                f"ratio_level {self.ratio_level!r} with reward_level 'action': one ratio cannot carry an advantage per "
                "action; use reward_level 'chunk', or ratio_level 'action' or 'token'"
            )
        if self.reward_level == "chunk" and self.value_level == "action":
            raise ValueError(
                "value_level 'action' with reward_level 'chunk': only the first of a chunk's values would be read; "
                "use value_level 'chunk', or reward_level 'action'"
            )
        return self

    @model_validator(mode="after")
    def _estimator_fits(self) -> Self:
        if ":" not in self.estimator and self.estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator {self.estimator!r} is unknown{did_you_mean(self.estimator, ESTIMATORS)}; use "
                f"{', '.join(ESTIMATORS)}, or package.module:function"
            )
        if ":" not in self.loss and self.loss != "clip":
            raise ValueError(f"loss {self.loss!r} is unknown; use clip, or package.module:function")
        if self.partial_reset and self.estimator in EPISODE_ESTIMATORS:
            raise ValueError(
                f"estimator {self.estimator!r} with partial_reset true: it scores whole episodes, and rollouts would "
                "cut them; use partial_reset false"
            )
        if self.partial_reset and self.group_size > 1:
            raise ValueError(
                f"group_size {self.group_size} with partial_reset true: the episodes of a group would end in different "
                "rollouts; use partial_reset false"
            )
        if self.group_size == 1 and self.estimator in GROUP_ESTIMATORS:
            raise ValueError(
                f"estimator {self.estimator!r} with group_size 1: an episode alone has no advantage over others; use a "
                "group_size of 2 or more"
            )
        if self.group_size == 1 and self.filter != GroupFilterConfig():
            raise ValueError("filter with group_size 1: there are no groups to filter; use a group_size of 2 or more")
        if self.estimator.startswith("reinforce_pp") and not self.normalize_advantages:
            raise ValueError(
                f"estimator {self.estimator!r} with normalize_advantages false: it is returns that are normalised over "
                "the batch; use normalize_advantages true"
            )
        return self


class PPOConfig(OnPolicyConfig):
    """Proximal policy optimisation (Schulman et al. 2017): a critic, and advantages by GAE."""

    kind: Literal["ppo"] = "ppo"  # pyright: ignore[reportIncompatibleVariableOverride] (sections are frozen)
    """ppo, grpo, another that an installed package offers, or `package.module:Class` of its settings."""


class GRPOConfig(OnPolicyConfig):
    """Group relative policy optimisation (Shao et al. 2024): PPO's settings, with defaults that were vetted together.
    Those that other settings decide are here as they are beside the other defaults.
    """

    kind: Literal["grpo"] = "grpo"  # pyright: ignore[reportIncompatibleVariableOverride] (sections are frozen)
    """Compares the episodes of a group, without a critic."""
    estimator: str = "grpo"
    """Of advantages."""
    partial_reset: bool = False
    """Groups need whole episodes."""
    group_size: Positive = 8
    """Episodes of one scenario."""
    filter: GroupFilterConfig = GroupFilterConfig(low=0.1, high=0.9)
    """Groups that nearly always fail or succeed are skipped; none are with group_size 1."""
    normalize_advantages: bool = False
    """The group's spread has done it; true where the estimator compares returns."""
    trajectory_weights: bool = True
    """Every episode weighs the same; false for dr_grpo and returns to go."""
    epochs: Positive = 1
    """Passes over each batch."""

    @model_validator(mode="before")
    @classmethod
    def _follow_the_estimator(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        settings = cast("dict[str, Any]", given)
        estimator = settings.get("estimator", "grpo")
        defaults: dict[str, Any] = {
            "normalize_advantages": estimator in ("reinforce_pp", "reinforce_pp_baseline", *TO_GO_ESTIMATORS),
            # Dr.GRPO is without this weight as it is without the division by the spread; returns to go are of actions,
            # not of episodes.
            "trajectory_weights": estimator not in ("dr_grpo", *TO_GO_ESTIMATORS),
        }
        groups = {"low": 0.1, "high": 0.9} if settings.get("group_size") != 1 else {}
        chosen = settings.get("filter", {})
        if isinstance(chosen, dict):
            chosen = groups | cast("dict[str, Any]", chosen)
        return defaults | settings | {"filter": chosen}
