"""Ranks: processes that each hold a part of a batch. Together they make the update that one process with the whole
batch would make.

Each rank has its own slots; in the order of all slots, those of rank 0 come first. Every rank makes the same calls in
the same order, even if its part of a minibatch is empty. Numbers that decide something (a stop, a coefficient, an
error) are sums over all ranks, in order of rank, so all ranks decide alike.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from treadle.errors import RankError, TreadleError

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by their size in bytes."""


class Ranks:
    """A single process, which holds the whole batch."""

    rank: int = 0
    """The number of this rank."""
    count: int = 1
    """How many ranks there are."""

    def gather(self, x: Tensor) -> list[Tensor]:
        """Each rank's x [n, ..], in order of rank; n may differ."""
        sizes = [int(size) for size in self._exchange(torch.tensor(len(x)))]
        if not any(sizes):
            return [x] * len(sizes)
        padded = torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])])
        return [each[:size] for each, size in zip(self._exchange(padded), sizes, strict=True)]

    def gather_text(self, text: str) -> list[str]:
        """Each rank's text."""
        return [
            bytes(each.tolist()).decode() for each in self.gather(torch.tensor(list(text.encode()), dtype=torch.uint8))
        ]

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over ranks; it has the same shape on all of them."""
        return torch.stack(self._exchange(x)).sum(0).to(x.device)

    def place(self, order: Tensor) -> Tensor:
        """The samples of all ranks in order, as rows of this rank: [samples of all ranks], -1 where another holds it.

        Args:
            order: [N] int64 of this rank's samples, a number that no two samples share.
        """
        each = self.gather(order)
        rows = torch.cat(each).argsort() - sum(len(part) for part in each[: self.rank])
        return torch.where((rows >= 0) & (rows < len(order)), rows, -1)

    @contextmanager
    def together(self, kind: type[TreadleError]) -> Generator[None, None, None]:
        """If the block raises an error of this kind on one rank, all ranks raise it, and it names that rank. Inside the
        block a rank is on its own: nothing there may wait for others.
        """
        yield

    def passes(self, count: int) -> int:
        """How many passes through a policy this rank makes, given how many its own samples need: as many, unless passes
        are collective. Passes beyond `count` are of any samples, and their gradient is 0.
        """
        return count

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over ranks. A gradient stays None if no rank has one."""

    def clip_gradients(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """Scale gradients, which are sums over ranks, so that their joint norm is at most `limit`; returns the norm."""
        return nn.utils.clip_grad_norm_(parameters, limit)

    @contextmanager
    def collective(self, what: str) -> Generator[None, None, None]:
        """If a collective of torch.distributed fails in the block, the error is a RankError that names the rank which
        is missing. `what` it was for: "the sum of gradients".
        """
        yield

    def check_same(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Stop if a rank's parameters differ from those of the others.

        Raises:
            RankError: It names the first parameter that differs.
        """

    def _exchange(self, x: Tensor) -> list[Tensor]:
        """Each rank's x, of one shape."""
        return [x]


ALONE = Ranks()
"""The default everywhere."""


class ProcessRanks(Ranks):
    """The ranks of a group of processes; each makes one, and gives it to its algorithm:

        torch.distributed.init_process_group()  # `torchrun` says where
        ranks = ProcessRanks(timeout=600)
        ppo = PPO(Training(policy, critic, config, device, load_reference, ranks))
        ppo.update(my_rollouts, iteration)

    with the same policy, critic and config everywhere, and of each rank as many rollouts, of its own slots. Metrics are
    of all ranks, but for `time/..`. Gradients on a CPU are summed by gloo, on another device by the group's own backend
    (NCCL was not tested); all else is small, and goes from process to process by gloo.

    With a policy that is sharded, use `treadle.training.sharding.ShardedRanks`.

    Args:
        timeout: seconds that a rank waits for another. The group's own backend has a time-out of its own.
        group: its processes; all by default.

    Raises:
        RankError: From all methods, where a rank does not come in time or is gone; it names the one waited for.
    """

    def __init__(self, timeout: float, group: dist.ProcessGroup | None = None) -> None:
        members = dist.get_process_group_ranks(group or dist.group.WORLD)
        self.count = len(members)
        self._timeout = timedelta(seconds=timeout)
        self._group = group or dist.group.WORLD
        # Two groups: a collective that fails cuts the connections of its group, and who is missing is then asked in
        # the other.
        self._control, self._cpu = (self._new_group(members, group is not None) for _ in range(2))
        self.rank = dist.get_rank(self._control)
        self._others = [rank for rank in range(len(members)) if rank != self.rank]

    def _new_group(self, members: list[int], some: bool) -> dist.ProcessGroup:
        made = dist.new_group(members, timeout=self._timeout, backend="gloo", use_local_synchronization=some)
        assert isinstance(made, dist.ProcessGroup)
        return made

    def mesh(self, device: torch.device) -> DeviceMesh:
        """The ranks as a mesh of one dimension, whose collectives are on this kind of device."""
        group = self._cpu if device.type == "cpu" else self._group
        assert group is not None
        return DeviceMesh.from_group(group, device.type)

    @contextmanager
    def collective(self, what: str) -> Generator[None, None, None]:
        """See `Ranks`. NCCL's collectives go on after the call; if one fails later, the group's own time-out ends the
        process.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._exchange(torch.zeros(1))
            raise RankError(
                f"rank {self.rank}: {what} did not finish within {self._timeout.total_seconds():g} s, and all ranks "
                f"are there ({_line(error)}); see the output of all"
            ) from error

    @contextmanager
    def together(self, kind: type[TreadleError]) -> Generator[None, None, None]:
        """See `Ranks`."""
        failure: TreadleError | None = None
        try:
            yield
        except kind as error:
            failure = error
        texts = self.gather_text(str(failure) if failure else "")
        failed = [rank for rank, text in enumerate(texts) if text]
        if failed:
            also = f" (so on ranks {failed})" if failed[1:] else ""
            raise kind(f"rank {failed[0]}{also}: {texts[failed[0]]}") from failure

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `Ranks`. All travel in one float32 buffer."""
        all_of_them = list(parameters)
        if not all_of_them:
            return
        device = all_of_them[0].device
        present = torch.tensor([p.grad is not None for p in all_of_them], device=device)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in all_of_them]
        flat = torch.cat([*(part.flatten().float() for part in parts), present.float()])
        with self.collective("the sum of gradients"):
            dist.all_reduce(flat, group=self._cpu if device.type == "cpu" else self._group)
        *sums, counts = flat.split([*(p.numel() for p in all_of_them), len(all_of_them)])
        for parameter, total, count in zip(all_of_them, sums, counts.tolist(), strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype) if count else None

    @torch.no_grad()
    def check_same(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """See `Ranks`. Sums of their bits are compared."""
        entries = list(parameters)
        if not entries:
            return
        names, all_of_them = zip(*entries, strict=True)
        sums = [p.detach().reshape(-1).view(_BITS[p.element_size()]).sum() for p in all_of_them]
        each = self._exchange(torch.stack(sums).cpu())
        for rank, found in enumerate(each):
            different = (found != each[0]).nonzero()[:, 0]
            if len(different):
                raise RankError(
                    f"{names[int(different[0])]} is not the same on ranks 0 and {rank}: ranks make one "
                    "update of one policy; begin all of them with the same checkpoint, critic and optimizer state"
                )

    def _exchange(self, x: Tensor) -> list[Tensor]:
        # From each to each: a wait then is for one rank, which the error can name on every rank.
        x = x.cpu().contiguous()
        found = [torch.empty_like(x) for _ in range(len(self._others) + 1)]
        found[self.rank] = x
        sends: list[tuple[int, dist.Work | None]] = []
        for rank in self._others:
            with self._waiting_for(rank):
                sends.append((rank, dist.isend(x, group=self._control, group_dst=rank)))
        for rank in self._others:
            with self._waiting_for(rank):
                _wait(dist.irecv(found[rank], group=self._control, group_src=rank), self._timeout)
        for rank, work in sends:
            with self._waiting_for(rank):
                _wait(work, self._timeout)
        return found

    @contextmanager
    def _waiting_for(self, rank: int) -> Generator[None, None, None]:
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} waited for rank {rank}, which has stopped or did not come within "
                f"{self._timeout.total_seconds():g} s ({_line(error)}); see the output of rank {rank}"
            ) from error


def _wait(work: dist.Work | None, timeout: timedelta) -> None:
    # None where this process is not of the group, which the constructor has refused.
    assert work is not None
    work.wait(timeout)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
