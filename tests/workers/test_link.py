"""The crew's end of a connection: no message is waited for without end."""

import os
import threading
from multiprocessing import Pipe

import pytest

from treadle.workers.link import Link


@pytest.mark.parametrize("size", [0, 5, 3_000_000])
def test_messages_go_both_ways_whatever_the_socket_holds(size: int):
    here, there = Pipe()
    link, message = Link(here, 30), b"x" * size
    echo = threading.Thread(target=lambda: there.send((there.recv(), size)))
    echo.start()
    link.send(message)
    assert link.recv() == (message, size)
    echo.join(30)
    link.close()


def test_the_deadlines_of_both_directions():
    here, there = Pipe()
    link = Link(here, 0.1)
    with pytest.raises(TimeoutError, match=r"it did not read what it was sent for 0.1 s"):
        link.send(b"x" * 3_000_000)
    here, there = Pipe()
    link = Link(here, 0.1)
    assert not link.ready()
    os.write(there.fileno(), b"\0\0\0\x08half")
    assert link.ready()
    with pytest.raises(TimeoutError, match=r"it began a message and did not end it for 0.1 s"):
        link.recv()
    there.close()
    with pytest.raises(EOFError):
        link.recv()
    with pytest.raises(ConnectionError):
        link.send(1)
