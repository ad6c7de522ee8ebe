"""Sharding: each rank holds a part of a policy's weights, gradients and optimizer state (FSDP2, `fully_shard`).

    ranks = ShardedRanks(timeout=600)
    policy = shard_policy(load_trainable(...), ranks, device)  # adapters and value head are there already
    ppo = PPO(Training(policy, critic, config, device, load_reference, ranks))

Parameters keep their type, and `MasterAdamW` keeps float32 masters of the rank's rows: 16 bytes for each parameter in
bfloat16, as with FSDP's own mixed precision. Masters are chosen because replicas and single processes have them too, so
the arithmetic and the checkpoints are the same. Gradients are summed in float32.

Every forward and backward pass of a sharded policy is collective: each rank makes as many, in the same order
(`Ranks.passes`). `unsharded` gathers all weights for a while, in which ranks may act as they like.
"""

import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from treadle.errors import PlacementError
from treadle.policies.protocol import Policy
from treadle.training.ranks import ProcessRanks, Ranks
from treadle.training.shards import can_shard, is_sharded, own_rows

FORWARD_METHODS = ("act", "encode", "evaluate", "supervised_loss", "values")
"""Methods of a policy that read its weights."""


class ShardedRanks(ProcessRanks):
    """Ranks whose policies are shards. Parameters that stay whole, such as those of a critic with its own network, have
    their gradients summed as in `ProcessRanks`; gradients of shards are summed by the backward pass.

    It takes the arguments of `ProcessRanks`.
    """

    def passes(self, count: int) -> int:
        """See `Ranks`."""
        return int(max(int(each) for each in self._exchange(torch.tensor(count))))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `Ranks`."""
        super().sum_gradients([parameter for parameter in parameters if not is_sharded(parameter)])

    def check_same(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """See `Ranks`. Of shards there is one only, so nothing can differ."""
        super().check_same([entry for entry in parameters if not is_sharded(entry[1])])

    @torch.no_grad()
    def clip_gradients(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """See `Ranks`."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        divided = _squares(x for x in gradients if is_sharded(x))
        same = _squares(x for x in gradients if not is_sharded(x))
        norm = (self.sum(divided.cpu()) + same.cpu()).sqrt()
        # The factor of torch.nn.utils.clip_grad_norm_.
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            own_rows(gradient).mul_(factor.to(gradient.device))
        return norm


class _AllGather:
    """FSDP's all-gather, whose failures are RankErrors."""

    def __init__(self, ranks: ProcessRanks) -> None:
        self._ranks = ranks

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        with self._ranks.collective("the gathering of weights"):
            return dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)


class _ReduceScatter(_AllGather):
    """FSDP's reduce-scatter, which sums whatever it is asked for."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        with self._ranks.collective("the sum of gradients"):
            return dist.reduce_scatter_single(output_tensor, input_tensor, group=group, async_op=async_op)


def shard_policy(policy: Policy, ranks: ProcessRanks, device: torch.device) -> Policy:
    """Divide a policy's parameters among ranks, in place, and return it. Afterwards it has no parts added: adapters and
    a value head come first. Use it for a frozen reference too.

    The policy may be on the CPU, with its weights mapped from files: its units go to `device` one by one, so that no
    rank ever holds the whole there. Scalars, and parameters of another type than most of the policy that are in no unit
    of their own (`Policy.shard_units`), stay whole on each rank.

    Args:
        policy: the same on all ranks.
        ranks: who holds a part each.
        device: where the parts are; a GPU is the process's current one.

    Raises:
        PlacementError: torch is too old.
        RankError: The policy is not the same on all ranks, or a rank is missing.
    """
    if not can_shard():
        raise PlacementError(
            f"placement.sharding: this needs torch 2.13 or later, found {torch.__version__}; update torch, or use "
            "placement.sharding none"
        )
    ranks.check_same(policy.named_parameters())
    mesh, precision = ranks.mesh(device), MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    units, whole_ones = find_units(policy)
    for parameter in whole_ones:
        parameter.data = parameter.data.to(device)
    # The policy last: it takes what is in no unit.
    for unit in (*units, policy):
        sharded = fully_shard(
            unit, mesh=mesh, reshard_after_forward=True, mp_policy=precision, ignored_params=whole_ones
        )
        sharded.set_custom_all_gather(cast("Any", _AllGather(ranks)))
        sharded.set_custom_reduce_scatter(cast("Any", _ReduceScatter(ranks)))
        # Sums over ranks, as everywhere: losses are shares of the whole batch's.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    # Nothing here changes what a policy returns in place, which is what it warns of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for name in FORWARD_METHODS:
        register_fsdp_forward_method(policy, name)
    return policy


def find_units(policy: Policy) -> tuple[list[nn.Module], set[nn.Parameter]]:
    """The units of a policy that are gathered one by one, and the parameters that stay whole on each rank; what is in
    neither is divided too, and gathered for as long as a pass lasts.
    """
    units = [unit for unit in policy.shard_units() if any(True for _ in unit.parameters())]
    inside = {parameter for unit in units for parameter in unit.parameters()}
    outside = [parameter for parameter in policy.parameters() if parameter not in inside]
    main = _main_type(outside)
    return units, {parameter for parameter in outside if parameter.dim() == 0 or parameter.dtype != main}


@contextmanager
def unsharded(policy: Policy) -> Generator[None, None, None]:
    """Gather all weights on every rank, for as long as the block lasts: there passes without gradient need no other
    rank. Entering is collective, leaving is not. A policy that is not sharded stays as it is.

    Memory: the whole policy in its own type, beside the rank's part.

    Raises:
        RankError: A rank does not come.
    """
    modules = list(sharded_modules(policy))
    if modules:
        modules[0].set_reshard_after_forward(False)
    try:
        for module in modules:
            module.unshard()
        yield
    finally:
        for module in modules:
            module.reshard()
        if modules:
            # FSDP notes every pass until the next backward pass.
            modules[0].reset_iter_state()
            modules[0].set_reshard_after_forward(True)


def whole(tensor: Tensor, ranks: Ranks) -> Tensor:
    """All rows of a tensor, on this rank's device; a tensor that is whole comes back as it is. Collective.

    Raises:
        RankError: A rank does not come.
    """
    if not is_sharded(tensor):
        return tensor.detach()
    mesh: DeviceMesh = cast("Any", tensor).device_mesh
    own, most = own_rows(tensor), -(-len(tensor) // mesh.size())
    padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
    found = own.new_empty(most * mesh.size(), *own.shape[1:])
    with ranks.collective("the gathering of weights"):
        dist.all_gather_single(found, padded, group=mesh.get_group())
    return found[: len(tensor)]


def gather_state(tensors: Iterable[tuple[str, Tensor]], ranks: Ranks, *, copy: bool = True) -> dict[str, Tensor]:
    """Tensors on the CPU by name, whole: on rank 0, and nothing on the others. Collective. They go through the device
    one by one. Without `copy`, one that is whole and on the CPU is itself.

    Raises:
        RankError: A rank does not come.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if is_sharded(tensor) or ranks.rank == 0:
            rows = whole(tensor, ranks)
            if ranks.rank == 0:
                found[name] = rows.to("cpu", copy=copy)
    return found


def sharded_modules(policy: nn.Module) -> Iterator[FSDPModule]:
    """The policy and its units, if it is sharded."""
    return (module for module in policy.modules() if isinstance(module, FSDPModule))


def _main_type(parameters: Sequence[nn.Parameter]) -> torch.dtype | None:
    """The type of most of the numbers."""
    counts: dict[torch.dtype, int] = {}
    for parameter in parameters:
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype]) if counts else None


def _squares(gradients: Iterable[Tensor]) -> Tensor:
    """The sum of this rank's squared numbers, float32."""
    norms = [torch.linalg.vector_norm(own_rows(x), dtype=torch.float32) for x in gradients]
    return torch.stack(norms).square().sum() if norms else torch.zeros(())
