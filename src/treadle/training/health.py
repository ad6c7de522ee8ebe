"""Checks that numbers of an update are finite."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from treadle.data.rollout import Rollout
from treadle.errors import DivergenceError


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
            check_finite(f"rollout.{name}", getattr(rollout, name))


def check_gradients(owner: str, norm: Tensor, module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Stop if a gradient's norm is not finite. Raises DivergenceError, which names the first parameter to blame."""
    if bool(torch.isfinite(norm)):
        return
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter in parameters:
        if parameter.grad is not None:
            check_finite(f"gradient of the {owner}, {names[id(parameter)]},", parameter.grad)
    # Finite entries whose squares overflow.
    check_finite(f"gradient of the {owner}", norm)
