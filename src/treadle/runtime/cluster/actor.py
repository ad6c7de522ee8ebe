# torch exports its stores without saying so.
# pyright: reportPrivateImportUsage=false
"""The member's side of a run of several processes: it does what the driver asks, one call after another."""

import copy
import logging
import os
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from treadle.config.schema import TrainConfig
from treadle.cores import pin
from treadle.data.rollout import Rollout
from treadle.data.span import Span
from treadle.data.step import EpisodeResult
from treadle.devices import peak_gpu_mb
from treadle.errors import TreadleError
from treadle.reporting.machine import peak_rss_mb
from treadle.runtime.cluster.messages import Answer, Ended, Fault, Part
from treadle.runtime.member import Member, Start
from treadle.runtime.placement import CPU, Placement
from treadle.runtime.player import PlayReport
from treadle.runtime.roles import Chosen, Film
from treadle.runtime.weights import Weights
from treadle.simulators.protocol import SimulatorSpec
from treadle.training.checkpoints import load_trainer
from treadle.training.ranks import ALONE, ProcessRanks, Ranks
from treadle.training.sharding import ShardedRanks


class MemberActor:
    """A member of a run in a process of its own.

    Args:
        config: the run's settings.
        placement: every process of the run.
        number: this one's place among them.
    """

    def __init__(self, config: TrainConfig, placement: Placement, number: int) -> None:
        self._config = config
        self._placement = placement
        self._number = number
        self._place = placement.processes[number]
        self._member: Member | None = None
        self._store: dist.TCPStore | None = None
        self._collected: Rollout | None = None
        """The last rollout of the own player, until a rank here has taken its part of it."""
        self._taken: list[Rollout] = []
        """This rank's rollouts for the next update."""
        self._whole = ExitStack()
        """It keeps the whole policy, where ranks hold parts."""
        self._ended: Ended = {}, 0
        self._records: list[str] = []
        logging.getLogger("treadle").addHandler(_Keeper(self._records))
        # Tensors that come from other processes are read and never written, as their pages are.
        warnings.filterwarnings("ignore", message=".*Zero-copy tensor serialization|.*NumPy array is not writable")

    # What the driver may ask at any time.

    def ended(self) -> Ended:
        """Episodes that ended since the last call, of the evaluation that it plays."""
        found, self._ended = self._ended, ({}, self._ended[1])
        return found

    def peak_memory(self) -> tuple[float, float]:
        """See `Member.peak_memory`."""
        return (peak_rss_mb(), peak_gpu_mb()) if self._member is None else self._member.peak_memory()

    def process(self) -> int:
        """The number of this process."""
        return os.getpid()

    # What it does, one call at a time.

    def call(self, name: str, *arguments: Any) -> Answer:
        """Call a method by name. What it raises is in the answer."""
        return self._answered(lambda: getattr(self, name)(*arguments))

    def collect(self, shares: list[Part]) -> tuple[Any, ...]:
        """Play one rollout; the answer, and the parts of it that ranks elsewhere learn from."""
        parts: list[Rollout | None] = [None] * len(shares)

        def play() -> None:
            rollout = self._here.player.collect_one()
            if self._place.rank is not None:
                self._collected = rollout
            parts[:] = [rollout.take_slots(part.first, part.stop) for part in shares]

        return (self._answered(play), *parts)

    def publish(self, version: int) -> tuple[Any, ...]:
        """The answer, and the weights."""
        weights: list[Weights | None] = [None]

        def publish() -> None:
            weights[0] = self._here.trainer.publish(version)

        return (self._answered(publish), *weights)

    def take(self, route: list[Part], *parts: Rollout | None) -> Answer:
        """Put this rank's rollout together, of parts of players; None is of the player in this process."""

        def take() -> None:
            own, self._collected = self._collected, None
            found: list[Rollout] = []
            for place, part in zip(route, parts, strict=True):
                if part is None:
                    assert own is not None
                    whole = place.first == 0 and place.stop == own.valid.shape[1]
                    part = own if whole else own.take_slots(place.first, place.stop)
                found.append(part)
            # Joined parts are new tensors. A single part of another process lies in memory that is read-only.
            (single, *others) = found
            copied = single if others or None in parts else copy.deepcopy(single)
            self._taken.append(Rollout.join([copied, *others]))

        return self._answered(take)

    def open(self, start: Start) -> int | None:
        """Load the policy and start the simulators; the size of their privileged state, None without a player."""
        machines = self._placement.machines
        if machines.kind == CPU and machines.physical:
            pin(self._place.devices)
        self._member = Member(self._config, self._placement, self._number, start)
        return None if self._member.crew is None else self._member.crew.spec.state_dim

    def meet(self) -> str:
        """Open a port of this machine, where ranks of other machines meet; returns `HOST:PORT`."""
        address = import_module("ray.util").get_node_ip_address()
        self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return f"{address}:{self._store.port}"

    def begin(self, state_dim: int, meeting: str, shared: bool) -> None:
        """Make the roles, with ranks that meet at `meeting`: `HOST:PORT`, or a file where all are on one machine."""
        self._here.begin(state_dim, self._ranks(meeting), shared=shared)

    def load(self, checkpoint: Path) -> None:
        """Go on from the state in a checkpoint, whose policy is loaded already."""
        self._here.load_state_dict(load_trainer(checkpoint), checkpoint)

    def load_player(self, state: dict[str, Any], version: int) -> None:
        """Go on from the state of all slots."""
        self._here.player.load_state_dict(state, version)
        self._here.player.take_report()

    def forget(self) -> None:
        """Drop rollouts that were not learnt from."""
        self._collected = None
        self._taken.clear()

    def wants_more(self) -> bool:
        """See `Trainer.wants_more`."""
        return self._here.trainer.wants_more(self._taken)

    def update(self, version: int) -> dict[str, float]:
        """See `Trainer.update`."""
        rollouts, self._taken = self._taken, []
        return self._here.trainer.update(rollouts, version)

    def gather_policy(self) -> None:
        """Hold the whole policy for a while, where it acts; every rank takes part. See `Trainer.playing`."""
        self._whole.close()
        self._whole.enter_context(self._here.trainer.playing())
        if self._place.player is None:
            self._whole.close()

    def divide_policy(self) -> None:
        """Hold the own part alone again."""
        self._whole.close()

    def finish_saving(self) -> None:
        """See `Trainer.finish_saving`."""
        self._here.trainer.finish_saving()

    def average(self) -> None:
        """See `Trainer.average`."""
        self._here.trainer.average()

    def receive(self, weights: Weights) -> None:
        """See `Player.receive`."""
        self._here.player.receive(weights)

    def report(self) -> PlayReport:
        """See `Player.take_report`; times are of the clock that all machines share."""
        report, offset = self._here.player.take_report(), time.time() - time.perf_counter()
        report.spans = [Span(s.role, s.worker, s.lanes, s.began + offset, s.ended + offset) for s in report.spans]
        return report

    def player_state(self) -> dict[str, Any]:
        """See `Player.state_dict`."""
        return self._here.player.state_dict()

    def evaluate(self, suite: str, played: list[int], share: tuple[int, int]) -> Ended:
        """See `Player.evaluate`. Returns all that it played."""
        whole: dict[int, EpisodeResult] = {}
        counted = 0

        def note(ended: Mapping[int, EpisodeResult], total: int) -> None:
            nonlocal counted
            counted = total
            whole.update(ended)
            self._ended = {**self._ended[0], **ended}, total

        try:
            self._here.player.evaluate(suite, note, played, share)
        finally:
            self._ended = {}, 0
        return whole, counted

    def film(self, chosen: Sequence[Chosen], size: int) -> list[Film]:
        """See `Player.film`."""
        return self._here.player.film(chosen, size)

    def spec(self) -> SimulatorSpec:
        """See `Player.spec`."""
        return self._here.player.spec

    def policy_facts(self) -> dict[str, Any]:
        """See `Player.policy_facts`."""
        return self._here.player.policy_facts

    def save(self, directory: Path, version: int, state: dict[str, Any]) -> None:
        """See `Trainer.save`."""
        self._here.trainer.save(directory, version, state)

    def swap_in(self) -> None:
        """See `Trainer.swap_in`."""
        self._here.trainer.swap_in()

    def swap_out(self) -> None:
        """See `Trainer.swap_out`."""
        self._here.trainer.swap_out()

    def export(self, directory: Path) -> None:
        """See `Trainer.export`."""
        self._here.trainer.export(directory)

    def alarms(self, metrics: dict[str, float]) -> dict[str, str]:
        """See `Trainer.alarms`."""
        return self._here.trainer.alarms(metrics)

    def close(self) -> None:
        """End the simulators."""
        if self._member is not None:
            self._member.__exit__(None, None, None)
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def _here(self) -> Member:
        assert self._member is not None
        return self._member

    def _answered(self, work: Callable[[], Any]) -> Answer:
        answer = Answer()
        try:
            answer.value = work()
        except TreadleError as error:
            answer.fault = Fault(error, traceback.format_exc())
        except Exception:  # noqa: BLE001 - the driver raises it, with this trace
            answer.fault = Fault(None, traceback.format_exc())
        answer.records, self._records[:] = list(self._records), []
        return answer

    def _ranks(self, meeting: str) -> Ranks:
        ranks, place = self._placement.ranks, self._place.rank
        if place is None or len(ranks) == 1:
            return ALONE
        timeout = timedelta(seconds=self._config.runtime.timeout)
        cuda = self._placement.machines.kind == "cuda"
        if cuda:
            torch.cuda.set_device(self._here.device)
        if Path(meeting).is_absolute():
            # Nothing of a run on one machine can be reached from outside.
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
            store: dist.Store = dist.FileStore(meeting, len(ranks))
        else:
            host, _, port = meeting.rpartition(":")
            store = self._store or dist.TCPStore(host, int(port), timeout=timeout)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=dist.PrefixStore("treadle", store),
            rank=place.number,
            world_size=len(ranks),
            timeout=timeout,
        )
        kind = ShardedRanks if self._placement.sharded else ProcessRanks
        return kind(self._config.runtime.timeout)


class _Keeper(logging.Handler):
    """Keeps what is logged until the next answer."""

    def __init__(self, records: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._kept = records

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record.getMessage())
