"""The crew's end of a connection to a worker process: neither a message that is sent nor one that is received is waited
for without end, whatever the other side does. Imports the standard library alone.
"""

import os
import pickle
import select
import struct
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

_LENGTH, _LONG = struct.Struct("!i"), struct.Struct("!Q")
"""Before a message stands its length; before a longer one than 31 bits hold, -1 and its length. As `Connection` has it,
which is the other end.
"""


class Link:
    """One end of `multiprocessing.Pipe()`.

    Args:
        connection: it is taken over.
        seconds: how long the other side may take to read a message, or to write the rest of one.
    """

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self.fileno, self.close = connection.fileno, connection.close
        # The other end is another description of the socket, and blocks as before.
        os.set_blocking(connection.fileno(), False)

    def send(self, message: Any) -> None:
        """Send a message. Raises TimeoutError, ConnectionError."""
        content = memoryview(ForkingPickler.dumps(message))
        size = len(content)
        head = _LENGTH.pack(size) if size < 2**31 else _LENGTH.pack(-1) + _LONG.pack(size)
        end = time.monotonic() + self._seconds
        for part in (memoryview(head), content):
            left = part
            while left:
                try:
                    left = left[os.write(self.fileno(), left[: 2**20]) :]
                except BlockingIOError:
                    self._wait(select.POLLOUT, end, "did not read what it was sent")

    def recv(self) -> Any:
        """The next message. Raises TimeoutError, EOFError, ConnectionError."""
        end = time.monotonic() + self._seconds
        (size,) = _LENGTH.unpack(self._read(_LENGTH.size, end))
        if size == -1:
            (size,) = _LONG.unpack(self._read(_LONG.size, end))
        return pickle.loads(self._read(size, end))  # noqa: S301 - of a worker that this process started

    def ready(self) -> bool:
        """Whether there is something to receive, or the other end is closed."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _read(self, size: int, end: float) -> bytearray:
        content = bytearray()
        while len(content) < size:
            try:
                part = os.read(self.fileno(), min(size - len(content), 2**20))
            except BlockingIOError:
                self._wait(select.POLLIN, end, "began a message and did not end it")
                continue
            if not part:
                raise EOFError
            content += part
        return content

    def _wait(self, event: int, end: float, what: str) -> None:
        poll = select.poll()
        poll.register(self.fileno(), event)
        if not poll.poll(max(0.0, 1000 * (end - time.monotonic()))):
            raise TimeoutError(f"it {what} for {self._seconds:g} s")
