"""A Ray cluster that a run starts on this machine, or joins."""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from treadle.errors import PlacementError
from treadle.runtime.placement import CPU, Machines

_REACH = 10.0
"""Seconds in which a cluster must answer."""
_SETTINGS = {
    # Ray for one machine, which listens on the loopback device alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # Tensors that a process publishes are read by others where they are, without a copy.
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
}
"""Environment variables that Ray reads when it is first imported, and that its processes inherit."""


class RaySession:
    """The cluster of a run.

    Args:
        address: names a cluster; without it one is started here.
        kind: the type of devices.
        devices: those of this machine, for a cluster that is started here.

    Raises:
        PlacementError: Ray is not installed, or the cluster cannot be joined.
    """

    def __init__(self, address: str | None, kind: str, devices: tuple[int, ...]) -> None:
        if find_spec("ray") is None:
            raise PlacementError(
                "placement: this run needs several processes, which are Ray actors, and Ray is not installed; install "
                "it with: pip install 'treadle[ray]', or let one device have every role"
            )
        self._folder: Path | None = None
        self._guardian: subprocess.Popen[str] | None = None
        self._kind = kind
        if address is None:
            self._own: tuple[int, ...] | None = devices
            self._start(kind, devices)
        else:
            self._own = None
            self._join(address)
        self._counts = {identity: self._count(node) for identity, node in self.nodes().items()}
        self.order = self._machine_order()
        """Identities of the machines: this one first, others in the order of their addresses."""

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        ray().shutdown()
        if self._guardian is not None:
            # It removes the folder once the last process has ended.
            try:
                self._guardian.communicate(timeout=_REACH)
            except subprocess.TimeoutExpired:
                self._guardian.kill()
        elif self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What Ray says of each machine, by its identity."""
        return {node["NodeID"]: node for node in ray().nodes()}

    @property
    def on_one_machine(self) -> bool:
        """Every machine of the cluster is this one."""
        return len({node["NodeManagerAddress"] for node in self.nodes().values()}) == 1

    def scratch(self) -> Path:
        """A new folder for files of members on one machine; it ends with the run."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="treadle-"))
        return Path(tempfile.mkdtemp(dir=self._folder))

    def machines(self) -> Machines:
        """The devices of every machine; those of a machine that is gone stay in the count, as lost."""
        nodes = self.nodes()
        devices = [self._own or tuple(range(self._counts[identity])) for identity in self.order]
        names = [f"node{i} ({nodes[identity]['NodeManagerAddress']})" for i, identity in enumerate(self.order)]
        lost = frozenset(i for i, identity in enumerate(self.order) if not nodes[identity]["Alive"])
        return Machines(self._kind, tuple(devices), tuple(names), lost, physical=self._own is not None)

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
        except (OSError, RuntimeError, ValueError, ray("exceptions").RayError) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise PlacementError(
                f"placement: Ray cannot be started on this machine ({first_line(error)}); its files are in "
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
        except (OSError, RuntimeError, ray("exceptions").RayError) as error:
            raise PlacementError(
                f"runtime.address: cannot join the Ray cluster {address!r} ({first_line(error)}); start one with "
                "`ray start --head`, or leave runtime.address out for this machine alone"
            ) from error

    def _count(self, node: dict[str, Any]) -> int:
        """The devices of a machine."""
        return int(node["Resources"].get("CPU" if self._kind == CPU else "GPU", 0))

    def _machine_order(self) -> list[str]:
        here = ray().get_runtime_context().get_node_id()
        nodes = {identity: node for identity, node in self.nodes().items() if node["Alive"]}
        return sorted(nodes, key=lambda i: (i != here, nodes[i]["NodeManagerAddress"], i))


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


def ray(module: str = "") -> Any:
    """Ray, or a module of it, which nothing else imports; it is untyped."""
    return import_module(f"ray.{module}" if module else "ray")


def _init_ray(**settings: Any) -> None:
    """`ray.init`, which takes SIGTERM for itself; it stays what it was, so that a run ends as the run wants it to."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray().init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def first_line(error: BaseException) -> str:
    """The first line of what it says."""
    return str(error).strip().partition("\n")[0]
