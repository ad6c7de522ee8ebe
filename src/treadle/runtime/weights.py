"""Weights on their way from the trainer to the player: plain data with a version."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from treadle.training.ranks import ALONE, Ranks
from treadle.training.sharding import gather_state

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights with which a player acts as the trainer's policy would."""

    version: int
    """How many updates they have had."""
    policy: Mapping[str, Tensor] | None = None
    """Trained parameters by name; None where player and trainer share them."""


def trained_state(module: nn.Module, ranks: Ranks = ALONE, *, copy: bool = False) -> dict[str, Tensor]:
    """A module's trained parameters by name, on the CPU: on rank 0, and nothing on other ranks. All ranks call it;
    parts of a sharded policy are gathered one by one. Without `copy`, whole ones on the CPU share its memory, and are
    sent at once.

    Raises:
        RankError: A rank does not come.
    """
    return gather_state(((name, p) for name, p in module.named_parameters() if p.requires_grad), ranks, copy=copy)


def twin(module: _Module, *, share_trained: bool) -> _Module:
    """A second module with modes and buffers of its own, and parameters of its own where they are trained; frozen ones,
    and with `share_trained` all, are the module's own.
    """
    shared = {id(p): p for p in module.parameters() if share_trained or not p.requires_grad}
    return copy.deepcopy(module, dict[int, Any](shared))


@torch.no_grad()
def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into a module's parameters by name; other parameters stay."""
    parameters = dict(module.named_parameters())
    for name, tensor in state.items():
        parameters[name].copy_(tensor)
