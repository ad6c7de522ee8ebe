"""Ray under a run: it starts or joins a cluster, starts members, and waits for them with a deadline."""

import logging
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from treadle.config.schema import TrainConfig
from treadle.errors import MemberFaultError, MemberLostError, PlacementError
from treadle.runtime.cluster.actor import MemberActor
from treadle.runtime.cluster.messages import Answer
from treadle.runtime.placement import CPU, Machines, Placement, ProcessPlace

_LOG_LINES = 20
_REACH = 10.0
"""Seconds in which a cluster must answer."""
_POLL = 1.0
"""Seconds between looks at the machines while members are waited for."""
_SETTINGS = {
    # Ray for one machine, which listens on the loopback device alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # Tensors that a process publishes are read by others where they are, without a copy.
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
}
"""Environment variables that Ray reads when it is first imported, and that its processes inherit."""

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
    """The Ray cluster of a run. A context manager: it ends what it started.

    Args:
        config: the run's settings; `runtime.address` names a cluster, without it one is started here.
        kind: the type of devices.
        devices: those of this machine, for a cluster that is started here.

    Raises:
        PlacementError: Ray is not installed, or the cluster cannot be joined.
    """

    def __init__(self, config: TrainConfig, kind: str, devices: tuple[int, ...]) -> None:
        if find_spec("ray") is None:
            raise PlacementError(
                "placement: this run needs several processes, which are Ray actors, and Ray is not installed; install "
                "it with: pip install 'treadle[ray]', or let one device have every role"
            )
        self._config = config
        self._folder: Path | None = None
        self._guardian: subprocess.Popen[str] | None = None
        self._kind = kind
        if config.runtime.address is None:
            self._own: tuple[int, ...] | None = devices
            self._start(kind, devices)
        else:
            self._own = None
            self._join(config.runtime.address)
        self._counts = {identity: self._count(node) for identity, node in self._nodes().items()}
        self._order = self._machine_order()
        self._group: Any = None
        self.handles: list[Handle] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_members(self.handles)
        self._free_group()
        _ray().shutdown()
        if self._guardian is not None:
            # It removes the folder once the last process has ended.
            try:
                self._guardian.communicate(timeout=_REACH)
            except subprocess.TimeoutExpired:
                self._guardian.kill()
        elif self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def on_one_machine(self) -> bool:
        """Every machine of the cluster is this one."""
        return len({node["NodeManagerAddress"] for node in self._nodes().values()}) == 1

    def scratch(self) -> Path:
        """A new folder for files of members on one machine; it ends with the run."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="treadle-"))
        return Path(tempfile.mkdtemp(dir=self._folder))

    def machines(self) -> Machines:
        """The devices of every machine; those of a machine that is gone stay in the count, as lost."""
        nodes = self._nodes()
        devices = [self._own or tuple(range(self._counts[identity])) for identity in self._order]
        names = [f"node{i} ({nodes[identity]['NodeManagerAddress']})" for i, identity in enumerate(self._order)]
        lost = frozenset(i for i, identity in enumerate(self._order) if not nodes[identity]["Alive"])
        return Machines(self._kind, tuple(devices), tuple(names), lost, physical=self._own is not None)

    def start_members(self, placement: Placement, numbers: Iterable[int]) -> list[Handle]:
        """Start members of a placement, by number."""
        bundles = self._reserve(placement)
        # Ray would hide graphics cards from actors that ask for none; members name theirs by number.
        variables = {
            "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
            "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
            "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
        }
        actor = _ray().remote(num_cpus=0, max_restarts=0, concurrency_groups={"watch": 1})(_with_watch(MemberActor))
        environment: dict[str, Any] = {"env_vars": variables}
        if (quoted := shlex.quote(sys.executable)) != sys.executable:
            # Ray hands the interpreter's path to a shell as it is.
            environment["py_executable"] = quoted
        strategy = _ray("util.scheduling_strategies").PlacementGroupSchedulingStrategy
        started: list[Handle] = []
        for number in numbers:
            place = placement.processes[number]
            options = {
                "scheduling_strategy": strategy(self._group, placement_group_bundle_index=bundles[place.node]),
                "runtime_env": environment,
            }
            made = actor.options(**options).remote(self._config, placement, number)
            handle = Handle(made, place, self._order[place.node])
            started.append(handle)
        self.handles += started
        pids = self.wait({handle: handle.actor.process.remote() for handle in started}, "start")
        for handle, pid in pids.items():
            handle.pid = pid
        return started

    def end_members(self, handles: Sequence[Handle], grace: float = 5.0) -> None:
        """Let members close their simulators, and end them; those that do not answer are killed."""
        nodes = self._nodes() if handles else {}
        ending = [handle.actor.call.remote("close") for handle in handles if nodes[handle.machine]["Alive"]]
        if ending:
            _ray().wait(ending, num_returns=len(ending), timeout=grace)
        for handle in handles:
            _ray().kill(handle.actor)
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
        exceptions = _ray("exceptions")
        try:
            return _ray().get(reference, timeout=self._config.runtime.timeout)
        except (exceptions.RayError, TimeoutError) as error:
            raise MemberLostError(f"weights that were published are gone ({_first_line(error)})", [], "") from error

    def put(self, value: Any) -> Any:
        """A reference to a value, which members read from shared memory."""
        return _ray().put(value)

    def wait(
        self, calls: dict[Handle, Any], doing: str, meanwhile: Callable[[], None] | None = None
    ) -> dict[Handle, Any]:
        """What each call returns. Raises MemberLostError, which names every member that is lost."""
        exceptions = _ray("exceptions")
        losses = (
            *(exceptions.RayActorError, exceptions.RaySystemError),
            *(exceptions.ObjectLostError, exceptions.GetTimeoutError),
        )
        deadline = time.monotonic() + self._config.runtime.timeout
        found: dict[Handle, Any] = {}
        lost: dict[Handle, str] = {}
        left = dict(calls)
        while left:
            ready, _ = _ray().wait(list(left.values()), num_returns=len(left), timeout=_POLL, fetch_local=True)
            for handle in [handle for handle, call in left.items() if call in ready]:
                try:
                    found[handle] = _ray().get(left.pop(handle), timeout=self._config.runtime.timeout)
                except losses as error:
                    lost[handle] = (
                        "cannot be reached" if isinstance(error, exceptions.ActorUnavailableError) else "has died"
                    )
            # Ray may never say that a machine is gone: its members are given up by its state.
            nodes = self._nodes() if left else {}
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

    def _start(self, kind: str, devices: tuple[int, ...]) -> None:
        """Start Ray on this machine, reachable from it alone, and ended with the run."""
        prepare_ray()
        self._folder = Path(tempfile.mkdtemp(prefix="treadle-"))
        before = _children()
        try:
            _init_ray(
                num_cpus=len(devices) if kind == CPU else None,
                num_gpus=len(devices) if kind == "cuda" else 0,
                include_dashboard=False,
                _temp_dir=str(self._folder / "ray"),
            )
        except (OSError, RuntimeError, ValueError, _ray("exceptions").RayError) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise PlacementError(
                f"placement: Ray cannot be started on this machine ({_first_line(error)}); its files are in "
                f"{self._folder.parent}, which needs room; TMPDIR names another folder"
            ) from error
        self._guard(self._folder, before)

    def _guard(self, folder: Path, before: set[int]) -> None:
        """Let a process of its own end what Ray has started, should this one be killed; not children from before."""
        self._guardian = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("guardian.py")), str(folder)],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._guardian.stdin is not None
        for process in _children() - before - {self._guardian.pid}:
            print(process, file=self._guardian.stdin, flush=True)

    def _join(self, address: str) -> None:
        try:
            # Ray itself tries for minutes.
            host, colon, port = address.rpartition(":")
            if colon and port.isdigit():
                socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH).close()
            _init_ray(address=address)
        except (OSError, RuntimeError, _ray("exceptions").RayError) as error:
            raise PlacementError(
                f"runtime.address: cannot join the Ray cluster {address!r} ({_first_line(error)}); start one with "
                "`ray start --head`, or leave runtime.address out for this machine alone"
            ) from error

    def _count(self, node: dict[str, Any]) -> int:
        """The devices of a machine."""
        return int(node["Resources"].get("CPU" if self._kind == CPU else "GPU", 0))

    def _machine_order(self) -> list[str]:
        """This machine first, others in the order of their addresses."""
        here = _ray().get_runtime_context().get_node_id()
        nodes = {identity: node for identity, node in self._nodes().items() if node["Alive"]}
        return sorted(nodes, key=lambda i: (i != here, nodes[i]["NodeManagerAddress"], i))

    def _nodes(self) -> dict[str, dict[str, Any]]:
        return {node["NodeID"]: node for node in _ray().nodes()}

    def _reserve(self, placement: Placement) -> dict[int, int]:
        """Reserve the devices of a placement, all or none of them; returns the bundle of each machine."""
        nodes = sorted({process.node for process in placement.processes})
        if self._group is None:
            resource = "CPU" if placement.machines.kind == CPU else "GPU"
            used = {node: set[int]() for node in nodes}
            for process in placement.processes:
                # A process that names none may have all of them.
                used[process.node].update(process.devices or placement.machines.devices[process.node])
            self._group = _ray("util").placement_group(
                [{resource: len(used[node])} for node in nodes],
                strategy="SPREAD",
                bundle_label_selector=[{"ray.io/node-id": self._order[node]} for node in nodes],
            )
            if not self._group.wait(self._config.runtime.timeout):
                free = {k: v for k, v in _ray().available_resources().items() if k in ("CPU", "GPU")}
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
            _ray("util").remove_placement_group(self._group)
            self._group = None

    def _last_words(self, handle: Handle) -> str:
        """The last lines that a member wrote, where they can be read from here."""
        # Where the logs of this machine are is not public.
        node = _ray("_private.worker")._global_node  # noqa: SLF001
        if node is None or not handle.pid:
            return ""
        lines: list[str] = []
        for path in sorted(Path(node.get_logs_dir_path()).glob(f"worker-*-{handle.pid}.*")):
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.strip() and not line.startswith(":")][-_LOG_LINES:]
        return "\nits last lines:\n  " + "\n  ".join(said) if said else ""


def prepare_ray() -> None:
    """Let Ray, which is not imported yet, serve this machine alone, and ask every process for a token.

    Raises PlacementError where it was imported before, with other settings.
    """
    missing = {name: value for name, value in _SETTINGS.items() if os.environ.get(name) != value}
    if missing and "ray" in sys.modules:
        settings = " ".join(f"{name}={value}" for name, value in missing.items())
        raise PlacementError(
            f"placement: this Python has imported Ray before the run, without {settings}; set them first, import Ray "
            "later, or start a cluster of your own and give runtime.address"
        )
    os.environ.update(missing)
    # Its own workers would give way to whatever else runs on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray keeps the first token that it sees in a process.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _ray(module: str = "") -> Any:
    """Ray, or a module of it, which nothing else imports; it is untyped."""
    return import_module(f"ray.{module}" if module else "ray")


def _init_ray(**settings: Any) -> None:
    """`ray.init`, which takes SIGTERM for itself; it stays what it was, so that a run ends as the run wants it to."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _ray().init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _with_watch(actor: type[MemberActor]) -> type[MemberActor]:
    """The class with methods that are answered while another call runs."""
    watched = type(actor.__name__, (actor,), {})
    for name in ("ended", "process"):
        setattr(watched, name, _ray().method(concurrency_group="watch")(getattr(actor, name)))
    return watched


def _children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
