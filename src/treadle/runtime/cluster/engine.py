"""The members of a run on Ray: they are started, asked, and waited for with a deadline."""

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from treadle.config.schema import TrainConfig
from treadle.errors import MemberFaultError, MemberLostError, PlacementError
from treadle.runtime.cluster.actor import MemberActor
from treadle.runtime.cluster.messages import Answer
from treadle.runtime.cluster.session import RaySession, first_line, ray
from treadle.runtime.placement import CPU, Placement, ProcessPlace

_LOG_LINES = 20
_POLL = 1.0
"""Seconds between looks at the machines while members are waited for."""

_log = logging.getLogger(__name__)


class Handle:
    """A member that was started.

    Args:
        actor: Ray's handle.
        place: where it is.
        machine: the identity of its machine in Ray.
    """

    def __init__(self, actor: Any, place: ProcessPlace, machine: str) -> None:
        self.actor = actor
        self.place = place
        self.machine = machine
        self.pid = 0

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.place.name


class Engine:
    """The members of a run, and the Ray session that they are in. A context manager: it ends what it started.

    Args:
        config: the run's settings; `runtime.address` names a cluster, without it one is started here.
        kind: the type of devices.
        devices: those of this machine, for a cluster that is started here.

    Raises:
        PlacementError: Ray is not installed, or the cluster cannot be joined.
    """

    def __init__(self, config: TrainConfig, kind: str, devices: tuple[int, ...]) -> None:
        self._config = config
        self.session = RaySession(config.runtime.address, kind, devices)
        self._group: Any = None
        self.handles: list[Handle] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_members(self.handles)
        self._free_group()
        self.session.close()

    def start_members(self, placement: Placement, numbers: Iterable[int]) -> list[Handle]:
        """Start members of a placement, by number."""
        bundles = self._reserve(placement)
        # Ray would hide graphics cards from actors that ask for none; members name theirs by number.
        variables = {
            "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
            "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
            "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
        }
        actor = ray().remote(num_cpus=0, max_restarts=0, concurrency_groups={"watch": 1})(_with_watch(MemberActor))
        environment: dict[str, Any] = {"env_vars": variables}
        if (quoted := shlex.quote(sys.executable)) != sys.executable:
            # Ray hands the interpreter's path to a shell as it is.
            environment["py_executable"] = quoted
        strategy = ray("util.scheduling_strategies").PlacementGroupSchedulingStrategy
        started: list[Handle] = []
        for number in numbers:
            place = placement.processes[number]
            options = {
                "scheduling_strategy": strategy(self._group, placement_group_bundle_index=bundles[place.node]),
                "runtime_env": environment,
            }
            made = actor.options(**options).remote(self._config, placement, number)
            handle = Handle(made, place, self.session.order[place.node])
            started.append(handle)
        self.handles += started
        pids = self.wait({handle: handle.actor.process.remote() for handle in started}, "start")
        for handle, pid in pids.items():
            handle.pid = pid
        return started

    def end_members(self, handles: Sequence[Handle], grace: float = 5.0) -> None:
        """Let members close their simulators, and end them; those that do not answer are killed."""
        nodes = self.session.nodes() if handles else {}
        ending = [handle.actor.call.remote("close") for handle in handles if nodes[handle.machine]["Alive"]]
        if ending:
            ray().wait(ending, num_returns=len(ending), timeout=grace)
        for handle in handles:
            ray().kill(handle.actor)
        self.handles = [handle for handle in self.handles if handle not in handles]

    def ask(
        self,
        handles: Sequence[Handle],
        name: str,
        *arguments: Any,
        each: Callable[[Handle], tuple[Any, ...]] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[Any]:
        """Let members call a method at the same time; returns what came of it, in order.

        Args:
            handles: the members.
            name: the method.
            arguments: for all of them.
            each: further arguments of each.
            meanwhile: called about once a second.

        Raises:
            TreadleError: What a member raised.
            MemberLostError: A member died, or did not answer in time.
            MemberFaultError: A member raised something else.
        """
        calls = {h: h.actor.call.remote(name, *arguments, *(each(h) if each else ())) for h in handles}
        answers = self.wait(calls, name, meanwhile)
        return [self.value(handle, answers[handle]) for handle in handles]

    def value(self, handle: Handle, answer: Answer) -> Any:
        """The value of an answer. Raises as `ask`."""
        for record in answer.records:
            _log.warning("%s: %s", handle.name, record)
        if answer.fault is None:
            return answer.value
        if answer.fault.error is not None:
            raise answer.fault.error
        raise MemberFaultError(f"{handle.name} raised an error{self._last_words(handle)}\n\n{answer.fault.trace}")

    def get(self, reference: Any) -> Any:
        """What a reference stands for. Raises MemberLostError where it is gone."""
        exceptions = ray("exceptions")
        try:
            return ray().get(reference, timeout=self._config.runtime.timeout)
        except (exceptions.RayError, TimeoutError) as error:
            raise MemberLostError(f"weights that were published are gone ({first_line(error)})", [], "") from error

    def put(self, value: Any) -> Any:
        """A reference to a value, which members read from shared memory."""
        return ray().put(value)

    def wait(
        self, calls: dict[Handle, Any], doing: str, meanwhile: Callable[[], None] | None = None
    ) -> dict[Handle, Any]:
        """What each call returns. Raises MemberLostError, which names every member that is lost."""
        exceptions = ray("exceptions")
        losses = (
            *(exceptions.RayActorError, exceptions.RaySystemError),
            *(exceptions.ObjectLostError, exceptions.GetTimeoutError),
        )
        deadline = time.monotonic() + self._config.runtime.timeout
        found: dict[Handle, Any] = {}
        lost: dict[Handle, str] = {}
        left = dict(calls)
        while left:
            ready, _ = ray().wait(list(left.values()), num_returns=len(left), timeout=_POLL, fetch_local=True)
            for handle in [handle for handle, call in left.items() if call in ready]:
                try:
                    found[handle] = ray().get(left.pop(handle), timeout=self._config.runtime.timeout)
                except losses as error:
                    lost[handle] = (
                        "cannot be reached" if isinstance(error, exceptions.ActorUnavailableError) else "has died"
                    )
            # Ray may never say that a machine is gone: its members are given up by its state.
            nodes = self.session.nodes() if left else {}
            for handle in [handle for handle in left if not nodes[handle.machine]["Alive"]]:
                del left[handle]
                lost[handle] = "was on a machine that is gone"
            if lost:
                # Others may wait for the lost one; they are asked again once it is replaced.
                break
            if left and time.monotonic() > deadline:
                lost = dict.fromkeys(
                    left, f"did not finish {doing!r} within runtime.timeout {self._config.runtime.timeout:g} s"
                )
                break
            if left and meanwhile is not None:
                meanwhile()
        if lost:
            first = next(iter(lost))
            raise MemberLostError(
                "; ".join(f"{handle.name} {reason}" for handle, reason in lost.items()) + f", while asked to {doing!r}",
                list(lost),
                self._last_words(first),
            )
        return found

    def _reserve(self, placement: Placement) -> dict[int, int]:
        """Reserve the devices of a placement, all or none of them; returns the bundle of each machine."""
        nodes = sorted({process.node for process in placement.processes})
        if self._group is None:
            resource = "CPU" if placement.machines.kind == CPU else "GPU"
            used = {node: set[int]() for node in nodes}
            for process in placement.processes:
                # A process that names none may have all of them.
                used[process.node].update(process.devices or placement.machines.devices[process.node])
            self._group = ray("util").placement_group(
                [{resource: len(used[node])} for node in nodes],
                strategy="SPREAD",
                bundle_label_selector=[{"ray.io/node-id": self.session.order[node]} for node in nodes],
            )
            if not self._group.wait(self._config.runtime.timeout):
                free = {k: v for k, v in ray().available_resources().items() if k in ("CPU", "GPU")}
                raise PlacementError(
                    f"placement: the devices were not free within runtime.timeout {self._config.runtime.timeout:g} s; "
                    f"the cluster has {free} free. Other jobs may use them: wait for them, or name fewer devices"
                )
        return {node: i for i, node in enumerate(nodes)}

    def release(self) -> None:
        """End every member, and give the devices back."""
        self.end_members(list(self.handles), grace=1.0)
        self._free_group()

    def _free_group(self) -> None:
        if self._group is not None:
            ray("util").remove_placement_group(self._group)
            self._group = None

    def _last_words(self, handle: Handle) -> str:
        """The last lines that a member wrote, where they can be read from here."""
        # Where the logs of this machine are is not public.
        node = ray("_private.worker")._global_node  # noqa: SLF001
        if node is None or not handle.pid:
            return ""
        lines: list[str] = []
        for path in sorted(Path(node.get_logs_dir_path()).glob(f"worker-*-{handle.pid}.*")):
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.strip() and not line.startswith(":")][-_LOG_LINES:]
        return "\nits last lines:\n  " + "\n  ".join(said) if said else ""


def _with_watch(actor: type[MemberActor]) -> type[MemberActor]:
    """The class with methods that are answered while another call runs."""
    watched = type(actor.__name__, (actor,), {})
    for name in ("ended", "process"):
        setattr(watched, name, ray().method(concurrency_group="watch")(getattr(actor, name)))
    return watched
