"""Saving a policy that several ranks hold: rank 0 writes the directory."""

from pathlib import Path
from typing import Any

from torch import nn

from treadle.errors import OutputError
from treadle.policies.protocol import Policy
from treadle.training.ranks import Ranks
from treadle.training.sharding import gather_state
from treadle.training.shards import is_sharded


def save_policy(policy: Policy, directory: Path, ranks: Ranks) -> None:
    """Save a policy, with adapters merged. All ranks call it, and rank 0 writes.

    Raises:
        OutputError: On all ranks, where the directory cannot be written.
        RankError: A rank does not come.
    """
    saved = savable(policy, ranks, copied=False)
    with ranks.together(OutputError):
        if ranks.rank == 0:
            saved.save(directory)


def savable(policy: Policy, ranks: Ranks, *, copied: bool) -> Policy:
    """The policy for `Policy.save` on rank 0. Collective.

    Shards are gathered one by one into the CPU's memory of rank 0. With `copied` all that is trained is copied there,
    so that the policy may be saved while training goes on; frozen tensors are shared.

    Raises:
        RankError: A rank does not come.
    """
    tensors = policy.state_dict(keep_vars=True)
    moved = {
        name: tensor
        for name, tensor in tensors.items()
        if is_sharded(tensor) or (copied and (tensor.requires_grad or not isinstance(tensor, nn.Parameter)))
    }
    if not moved:
        return policy
    gathered = gather_state(moved.items(), ranks)
    state = {name: gathered.get(name, tensor.detach()) for name, tensor in tensors.items()}
    names = [name for name, _ in policy.named_parameters()]
    # Modules are shared; the copy differs in what its own methods read.
    shadow: Policy = object.__new__(type(policy))
    attributes: dict[str, Any] = vars(shadow)
    attributes.update(vars(policy))
    attributes["state_dict"] = lambda: dict(state)
    attributes["named_parameters"] = lambda: iter([(name, state[name]) for name in names])
    return shadow
