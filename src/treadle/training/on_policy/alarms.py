"""Signs of failures that raise no error. Each check reads the latest iterations, and its sentence names what was seen,
the likely cause, and the setting to change. `docs/silent-failures.md` lists them.

A check may read metrics of iterations (`metrics.jsonl`), and what the run knows of its episodes (`runtime.facts`).
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from treadle.config.on_policy import OnPolicyConfig
from treadle.config.schema import TrainConfig

FIRST_KL = 1e-3
"""Nats between rollout and trainer with the same weights; more is no rounding."""
CONSTANT = 1e-6
"""Log-probs that differ by less are one."""
UNMOVED = 0.999
"""Share of weights that a step leaves as they are; more is a policy that stands still."""
LAST_KL = 0.1
"""Nats by which the last step of an update may see the policy away from the one that played."""
FEW_STEPS = 4
"""Steps of an update that are not many."""
SILENT_GROUPS = 24
"""Groups in a row without a gradient that are no chance: where one in five has one, it happens once in 200 times."""
SIGNAL = 0.01
"""Share of signal in half a step's gradient, that is, two of a hundred parts of a whole step's."""
MEASUREMENTS = 6
"""Measurements of it that tell."""
LEARNT = 0.9
"""Success of a policy that has little left to learn."""
UNBOUNDED = math.exp(5)
"""Ratio of a negative advantage at which a single entry outweighs a minibatch of ordinary ones."""
_KEPT = 64
"""Iterations that are remembered."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a check reads."""

    rows: Sequence[Mapping[str, float]]
    """Numbers of the latest iterations by name, the newest last."""
    config: TrainConfig
    algorithm: OnPolicyConfig
    dtype: torch.dtype
    """Of the weights that are trained."""

    def now(self, name: str) -> float:
        """A number of the latest iteration, NaN where it has none; comparisons with NaN are false."""
        return self.rows[-1].get(name, math.nan)

    def last(self, name: str, count: int) -> list[float]:
        """That number in the last `count` iterations that have it, in order; none where fewer have it."""
        found = [row[name] for row in self.rows if name in row][-count:]
        return found if len(found) == count else []


def log_prob_gap(seen: Seen) -> str | None:
    """Rollout and trainer compute other log-probs with the same weights."""
    gap, limit = seen.now("update/log_prob_gap_mean"), seen.algorithm.log_prob_alarm
    kl = seen.now("update/first_kl") if seen.now("update/staleness") == 0 else math.nan
    if not (gap > limit or kl > FIRST_KL):
        return None
    return (
        f"log-probs of rollout and trainer differ by {gap:.3g} nats in the mean (algorithm.log_prob_alarm is {limit:g})"
        f"{f' and diverge by {kl:.2g} (limit {FIRST_KL:g})' if kl > FIRST_KL else ''} before the first step: ratios "
        "carry noise of that size; compare dtype, kernels and sampling of the two, and try policy.dtype=float32"
    )


def constant_log_probs(seen: Seen) -> str | None:
    """The policy does not draw."""
    if not seen.now("update/log_prob_std") < CONSTANT:
        return None
    return (
        f"all decisions have one log-prob (update/log_prob_std is {seen.now('update/log_prob_std'):.2g}, entropy "
        f"{seen.now('update/entropy'):.2g}): the policy does not draw, and learns nothing; raise "
        "policy.sampling.temperature, or the noise of policy.options (level)"
    )


def unmoved_weights(seen: Seen) -> str | None:
    """Steps are smaller than the weights' type can tell."""
    shares, rates = seen.last("update/unmoved_share", 3), seen.last("update/learning_rate", 3)
    if not shares or min(shares) <= UNMOVED or not rates or not min(rates) > 0:
        return None
    dtype = str(seen.dtype).removeprefix("torch.")
    half = seen.dtype in (torch.bfloat16, torch.float16)
    fate = "float32 masters keep it, but the policy that acts stands still until it adds up" if half else "it is lost"
    return (
        f"{shares[-1]:.2%} of the weights that have a gradient are as before the step (update/unmoved_share): at rate "
        f"{rates[-1]:.2g} it is below half a unit in their last place ({dtype}); {fate}; raise "
        f"optimizer.learning_rate{', or use policy.dtype=float32' if half else ''}"
    )


def worse_than_greedy(seen: Seen) -> str | None:
    """What is sampled fails where the greedy base succeeds."""
    base, low = seen.now("base/success"), seen.now("base/success_low")
    sampled, high = seen.now("sampled/success"), seen.now("sampled/success_high")
    if not high < low / 2:
        return None
    config = seen.config
    shorter = (
        f", simulator.horizon {config.simulator.horizon} of {config.evaluation_horizon} evaluated steps"
        if config.simulator.horizon < config.evaluation_horizon
        else ""
    )
    return (
        f"{sampled:.1%} of the sampled episodes succeed (at most {high:.1%}), and {base:.1%} of the base's evaluation "
        f"(at least {low:.1%}): exploration breaks what the base can do; lower policy.sampling.temperature (now "
        f"{config.policy.sampling.temperature:g}) or the noise of policy.options, or execute a longer chunk{shorter}"
    )


def too_many_steps(seen: Seen) -> str | None:
    """An update goes far from the policy that played, and further from one update to the next."""
    kls, steps, algorithm = seen.last("update/last_kl", 3), seen.now("update/steps"), seen.algorithm
    if not kls or not steps > FEW_STEPS or min(kls) <= LAST_KL or kls[-1] < kls[0]:
        return None
    return (
        f"the last of {steps:.0f} steps sees the policy {kls[-1]:.2g} nats from the one that played, two iterations "
        f"before {kls[0]:.2g} (update/last_kl, limit {LAST_KL:g}): too many or too large steps for the data; use "
        f"algorithm.epochs=1 (now {algorithm.epochs}), a larger algorithm.minibatch (now {algorithm.minibatch}), "
        "algorithm.target_kl, or a lower optimizer.learning_rate"
    )


def equal_groups(seen: Seen) -> str | None:
    """No decision has an advantage."""
    algorithm, success = seen.algorithm, seen.now("rollout/success")
    if algorithm.group_size == 1:
        if seen.now("update/dead_token_share") != 1:
            return None
        return (
            f"every advantage is 0 ({success:.1%} of episodes succeed): no reward tells one action from another; use a "
            "simulator's reward inside the episode (simulator.options), a better base, or easier scenarios"
        )
    rounds = -(-seen.config.simulator.slots // algorithm.group_size) * algorithm.rounds
    silent = 0
    for row in reversed(seen.rows):
        if row.get("update/filtered_group_share", 0.0) < 1:
            break
        silent += rounds
    if silent < SILENT_GROUPS:
        return None
    low, high = algorithm.filter.low, algorithm.filter.high
    if success == 0:
        why = "all fail, so the task is too hard: take easier scenarios or a better base, or reward progress"
    elif success == 1:
        why = "all succeed, so the task is too easy: take harder scenarios"
    else:
        why = (
            f"{success:.1%} of episodes succeed, but those of one scenario do so alike, or their rate is outside of "
            f"algorithm.filter ({low:g} to {high:g}): widen it"
        )
    return (
        f"the last {silent} groups gave no gradient (update/filtered_group_share is 1): {why}; or raise "
        f"policy.sampling.temperature (now {seen.config.policy.sampling.temperature:g}) or algorithm.group_size"
    )


def little_signal(seen: Seen) -> str | None:
    """Steps go where chance points."""
    shares = [row["update/signal_share"] for row in seen.rows if "update/signal_share" in row]
    # A policy that has learnt its task has no signal left, and one that gets better has some.
    if len(shares) < MEASUREMENTS or seen.now("rollout/success") > LEARNT or _rises(seen):
        return None
    mean, error = _estimate(shares)
    if mean + 2 * error >= SIGNAL:
        return None
    return (
        f"the gradients of two halves of a step have {mean:.2%} in common (update/signal_share, {len(shares)} "
        f"measurements, standard error {error:.2%}): nearly all of a step is noise; give an update more episodes "
        f"(simulator.slots, now {seen.config.simulator.slots}, or algorithm.rounds) and a step more decisions "
        f"(algorithm.minibatch, now {seen.algorithm.minibatch})"
    )


def _rises(seen: Seen) -> bool:
    """Whether success in the last quarter of the iterations is above that in the first, beyond twice its error."""
    success = [row["rollout/success"] for row in seen.rows if "rollout/success" in row]
    count = len(success) // 4
    if count < 2:
        return False
    (before, one), (after, other) = _estimate(success[:count]), _estimate(success[-count:])
    return after - before > 2 * math.hypot(one, other)


def _estimate(values: Sequence[float]) -> tuple[float, float]:
    """The mean of at least two, and its standard error."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def unbounded_ratio(seen: Seen) -> str | None:
    """One entry of the batch decides the step."""
    ratio = seen.now("update/ratio_max_negative")
    if seen.algorithm.dual_clip is not None or not ratio > UNBOUNDED:
        return None
    return (
        f"an entry with a negative advantage has the ratio {ratio:.3g} (above e^5), and nothing bounds its weight: it "
        "outweighs all others; set algorithm.dual_clip=3"
    )


def idle_pays(seen: Seen) -> str | None:
    """Episodes that succeed earn less than those that fail."""
    won, lost = seen.now("return/success"), seen.now("return/failure")
    if not seen.now("return/gap_high") < 0:
        return None
    return (
        f"episodes that succeed return {won:.3g} in the mean, and those that fail {lost:.3g}: who learns from this "
        "reward learns to fail; lower its penalties (of drops, time or effort), or reward success more "
        "(simulator.options)"
    )


CHECKS: dict[str, Callable[[Seen], str | None]] = {
    "log_prob_gap": log_prob_gap,
    "constant_log_probs": constant_log_probs,
    "unmoved_weights": unmoved_weights,
    "worse_than_greedy": worse_than_greedy,
    "too_many_steps": too_many_steps,
    "equal_groups": equal_groups,
    "little_signal": little_signal,
    "unbounded_ratio": unbounded_ratio,
    "idle_pays": idle_pays,
}
"""Every check by its name."""


class Alarms:
    """The checks of a run.

    Args:
        config: the run's settings.
        parameters: those that are trained.
    """

    def __init__(self, config: TrainConfig, parameters: Sequence[nn.Parameter]) -> None:
        assert isinstance(config.algorithm, OnPolicyConfig)
        self._config, self._algorithm = config, config.algorithm
        coarsest = max(parameters, key=lambda parameter: torch.finfo(parameter.dtype).eps, default=None)
        self._dtype = torch.float32 if coarsest is None else coarsest.dtype
        self._rows: deque[Mapping[str, float]] = deque(maxlen=_KEPT)

    def see(self, row: Mapping[str, float]) -> dict[str, str]:
        """The sentences of the checks that an iteration fails, by their names. Iterations come in order."""
        self._rows.append(row)
        seen = Seen(self._rows, self._config, self._algorithm, self._dtype)
        said = {name: check(seen) for name, check in CHECKS.items()}
        return {name: sentence for name, sentence in said.items() if sentence is not None}
