"""Whether an update does what it should: numbers that are not finite, and what is wrong with the metrics."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from treadle.data.rollout import Rollout
from treadle.errors import DivergenceError


def check_finite(name: str, x: Tensor | float) -> None:
    """Stop where a number of x is not finite.

    Raises:
        DivergenceError: it names x.
    """
    tensor = torch.as_tensor(x)
    if not bool(torch.isfinite(tensor).all()):
        found = "nan" if bool(tensor.isnan().any()) else "infinite"
        raise DivergenceError(
            f"{name} is {found}: training stopped, and the last checkpoint is as it was. Lower "
            "optimizer.learning_rate or optimizer.gradient_norm, and resume with the same command"
        )


def check_rollouts(rollouts: Sequence[Rollout]) -> None:
    """Stop where what was collected is not finite. Raises DivergenceError."""
    for rollout in rollouts:
        for name in ("reward", "log_probs", "values", "final_values", "next_values"):
            check_finite(f"rollout.{name}", getattr(rollout, name))


def check_gradients(owner: str, norm: Tensor, module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Stop where a gradient's norm is not finite; the error names the first parameter that is to blame.

    Raises:
        DivergenceError: as said.
    """
    if bool(torch.isfinite(norm)):
        return
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter in parameters:
        if parameter.grad is not None:
            check_finite(f"gradient of the {owner}, {names[id(parameter)]},", parameter.grad)
    # Finite entries whose squares overflow.
    check_finite(f"gradient of the {owner}", norm)


def alarms(metrics: dict[str, float], log_prob_alarm: float) -> list[str]:
    """What a person should know of an iteration's metrics, a sentence each."""
    found: list[str] = []
    gap = metrics.get("update/log_prob_gap_mean", 0.0)
    if gap > log_prob_alarm:
        found.append(
            f"log-probs of rollout and trainer differ by {gap:.3g} nats in the mean (algorithm.log_prob_alarm is "
            f"{log_prob_alarm:g}): ratios carry noise of that size; compare dtype, kernels and sampling of the two"
        )
    return found
