"""What workers say is heard once, in order, however they end."""

import threading
import time
from multiprocessing import Pipe

import pytest

from treadle.rollout.inbox import GONE, ProcessInbox, ThreadInbox


def test_threads_are_heard_in_order_and_handed_over_as_they_are():
    inbox = ThreadInbox[str]()
    one, other = inbox.channel("one"), inbox.channel("other")
    message = ["not copied"]
    one.send(message)
    other.send(2)
    one.close()
    heard = inbox.wait(1.0)
    assert heard == [("one", message), ("other", 2), ("one", GONE)]
    assert heard[0][1] is message
    assert inbox.wait(0.0) == []


def test_a_worker_in_a_thread_is_told_what_was_asked():
    inbox = ThreadInbox[int]()
    channel = inbox.channel(7)
    worker = threading.Thread(target=lambda: channel.send(channel.recv() + 1))
    worker.start()
    channel.ask(41)
    assert inbox.wait(10.0) == [(7, 42)]
    worker.join(10.0)


@pytest.mark.parametrize("make", [ThreadInbox, ProcessInbox])
def test_silence_ends_with_the_time(make):
    began = time.monotonic()
    assert make().wait(0.05) == []
    assert time.monotonic() - began >= 0.045


def test_processes_are_heard_until_they_are_gone_or_removed():
    inbox = ProcessInbox[str]()
    pairs = [Pipe(), Pipe()]
    for name, (here, _) in zip(("one", "other"), pairs, strict=True):
        inbox.add(name, here)
    pairs[0][1].send("ready")
    assert inbox.wait(10.0) == [("one", "ready")]
    pairs[1][1].close()
    assert inbox.wait(10.0) == [("other", GONE)]
    inbox.remove(pairs[1][0])
    assert inbox.wait(0.0) == []
    inbox.close()
    for here, _ in pairs:
        here.close()
    pairs[0][1].close()
