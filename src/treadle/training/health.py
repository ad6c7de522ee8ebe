"""Checks that numbers of an update are finite."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from treadle.data.rollout import Rollout
from treadle.errors import DivergenceError
from treadle.training.ranks import ALONE, Ranks
from treadle.training.shards import own_rows


def check_finite(name: str, x: Tensor | float) -> None:
    """Stop if a number of x is not finite. Raises DivergenceError, which names x."""
    tensor = torch.as_tensor(x)
    if not bool(torch.isfinite(tensor).all()):
        found = "nan" if bool(tensor.isnan().any()) else "infinite"
        raise DivergenceError(
            f"{name} is {found}: training stopped, and the last checkpoint is as it was. Lower "
            "optimizer.learning_rate or optimizer.gradient_norm, and resume with the same command"
        )


def check_rollouts(rollouts: Sequence[Rollout]) -> None:
    """Stop if a number of a rollout is not finite. Raises DivergenceError."""
    for rollout in rollouts:
        for name in ("reward", "log_probs", "values", "final_values", "next_values"):
            if (tensor := getattr(rollout, name)) is not None:
                check_finite(f"rollout.{name}", tensor)


def check_gradients(
    owner: str, norm: Tensor, module: nn.Module, parameters: Iterable[nn.Parameter], ranks: Ranks = ALONE
) -> None:
    """Stop if a gradient's norm is not finite; it is the same on all ranks. Raises DivergenceError, which names the
    first parameter to blame.
    """
    if bool(torch.isfinite(norm)):
        return
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    parts = [(names[id(p)], own_rows(p.grad)) for p in parameters if p.grad is not None]
    # A rank may hold no more than some rows of each.
    finite = [bool(torch.isfinite(part).all()) for _, part in parts]
    faults = [0 if fine else 1 + bool(part.isnan().any()) for fine, (_, part) in zip(finite, parts, strict=True)]
    worst = torch.stack(ranks.gather(torch.tensor([faults]))).amax(0)[0].tolist()
    for (name, _), fault in zip(parts, worst, strict=True):
        check_finite(f"gradient of the {owner}, {name},", (0.0, math.inf, math.nan)[fault])
    # Finite entries whose squares overflow.
    check_finite(f"gradient of the {owner}", norm)
