"""No wait without an end: every send, join, receive, barrier and remote call of a run has a deadline, or a reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import treadle

SOURCE = Path(treadle.__file__).parent
WATCHED = (
    "runtime",
    "workers",
    "training",
    "rollout",
    "evaluation",
    "supervised",
    "serving",
    "reporting",
    "policies",
    "simulators",
)
"""Folders of what runs unwatched. A person looks on while something is installed, and may press Ctrl-C."""

NEEDS_AN_ARGUMENT = {"join", "wait", "communicate", "result", "acquire", "select", "poll", "exception"}
"""Calls that wait for ever when they are given nothing."""
NEEDS_TIMEOUT = {"get", "wait"}
"""Calls of Ray that wait for ever without `timeout=`."""
ALWAYS = {"recv", "recv_bytes", "recv_into", "send", "send_bytes", "sendall", "accept"}
"""Calls that take no deadline. So do all of `torch.distributed`'s that are in `COLLECTIVE`."""
COLLECTIVE = {
    *("isend", "irecv", "barrier", "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object"),
    *("all_gather_single", "broadcast", "broadcast_object_list", "reduce", "reduce_scatter_tensor", "gather"),
}

REASONS = {
    ("workers/worker.py", "connection.recv()"): "a worker waits for orders; it is killed with its crew",
    ("workers/worker.py", "channel.recv()"): "a worker waits for orders; it is killed with its crew",
    ("workers/worker.py", "channel.send"): "a worker's answer; the crew has a deadline and kills it",
    ("workers/launch.py", "link.send"): "a worker's answer; the crew has a deadline and kills it",
    ("workers/handles.py", "self.connection.recv()"): "a Link, which has a deadline; of a thread, a message is there",
    ("workers/handles.py", "self.connection.send"): "a Link, which has a deadline; a thread's never fills",
    ("workers/handles.py", "self.send("): "`WorkerHandle.send`, which sends through a Link",
    ("workers/handles.py", "self._pipe.recv_bytes()"): "the selector said that there is a message",
    ("workers/handles.py", "self._pipe.send_bytes"): "four bytes a message, and the other side takes one at a time",
    ("workers/handles.py", "self._process.poll()"): "`Popen.poll` does not wait",
    ("workers/crew.py", "self._handles[worker].send"): "`WorkerHandle.send`, which sends through a Link",
    ("runtime/overlap.py", "self._jobs.popleft().result()"): "a rollout, whose crew and members have deadlines",
    ("runtime/overlap.py", "wait(self._jobs)"): "rollouts, whose crew and members have deadlines",
    ("serving/server.py", "connection.send"): "inside `asyncio.timeout`",
    ("serving/server.py", "connection.recv()"): "inside `asyncio.timeout`",
    ("serving/server.py", "stop.wait()"): "a server goes on until it is told to stop",
    ("training/ranks.py", "dist.all_reduce"): "the group has a time-out, and `collective` names who is missing",
    ("training/ranks.py", "dist.isend"): "it does not wait; its `wait` has a time-out",
    ("training/ranks.py", "dist.irecv"): "it does not wait; its `wait` has a time-out",
    ("training/sharding.py", "dist."): "the group has a time-out, and `collective` names who is missing",
    ("runtime/cluster/roles.py", "self._trainers.send(weights)"): "`Engine.wait` has a deadline",
}
"""File and beginning of a call, and why it needs no deadline of its own."""


def waits(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every call in a file that may wait for ever."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        text = ast.unparse(node)
        if isinstance(node.func, ast.Name) and node.func.id == "wait":  # of `concurrent.futures`
            if not any(keyword.arg == "timeout" for keyword in node.keywords):
                yield node.lineno, text
            continue
        if not isinstance(node.func, ast.Attribute):
            continue
        name = node.func.attr
        given = bool(node.args or node.keywords)
        timed = any(keyword.arg == "timeout" for keyword in node.keywords)
        of_ray = text.startswith("ray()")
        if (
            name in ALWAYS
            or (text.startswith("dist.") and name in COLLECTIVE)
            or (name in NEEDS_AN_ARGUMENT and not given and text != "select.poll()")
            or (of_ray and name in NEEDS_TIMEOUT and not timed)
            or (text.startswith("subprocess.") and name in ("run", "check_output", "check_call") and not timed)
        ):
            yield node.lineno, text


FILES = [
    path
    for folder in WATCHED
    for path in sorted((SOURCE / folder).rglob("*.py"))
    if path.name != "setup.py"  # what an installation does
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_every_wait_has_a_deadline_or_a_reason(path: Path):
    name = path.relative_to(SOURCE).as_posix()
    for line, text in waits(path):
        known = any(name == file and text.startswith(start) for file, start in REASONS)
        assert known, f"{name}:{line}: {text} waits without end; give it a deadline, or a reason here"


def test_every_reason_is_of_something():
    used = {
        (file, start)
        for path in FILES
        for _, text in waits(path)
        for file, start in REASONS
        if path.relative_to(SOURCE).as_posix() == file and text.startswith(start)
    }
    assert used == REASONS.keys()


def test_the_search_finds_what_waits(tmp_path: Path):
    path = tmp_path / "waits.py"
    path.write_text(
        "thread.join()\nthread.join(3)\n', '.join(names)\npipe.recv()\nfuture.result()\nfuture.result(5)\n"
        "ray().get(x)\nray().get(x, timeout=3)\nray().wait([x])\nsubprocess.run(['a'])\n"
        "subprocess.run(['a'], timeout=3)\nprocess.communicate()\nprocess.communicate(timeout=3)\ndist.barrier()\n"
        "process.wait()\nlock.acquire()\nwait(jobs)\nwait(jobs, timeout=3)\n"
    )
    assert sorted(line for line, _ in waits(path)) == [1, 4, 5, 7, 9, 10, 12, 14, 15, 16, 17]
