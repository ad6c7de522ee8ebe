"""What workers say, in the order in which it comes, and how long to wait for it. Imports no torch."""

import selectors
from abc import ABC, abstractmethod
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")

GONE = object()
"""What is heard of a worker whose side is closed."""


class Inbox(ABC, Generic[Key]):
    """What is heard of several workers, each known by a key."""

    @abstractmethod
    def wait(self, timeout: float) -> list[tuple[Key, Any]]:
        """All that was said since the last call, or, if that is nothing, the first that is said within `timeout`
        seconds; empty where there is none.
        """

    @abstractmethod
    def close(self) -> None:
        """Listen no more."""


class ThreadInbox(Inbox[Key]):
    """Of workers in threads, whose messages are handed over as they are."""

    def __init__(self) -> None:
        self._said = SimpleQueue[tuple[Key, Any]]()

    def channel(self, key: Key) -> "ThreadChannel[Key]":
        """The channel of another worker."""
        return ThreadChannel(key, self._said)

    def wait(self, timeout: float) -> list[tuple[Key, Any]]:
        """See `Inbox.wait`."""
        heard: list[tuple[Key, Any]] = []
        try:
            heard.append(self._said.get(timeout > 0, timeout))
            while True:
                heard.append(self._said.get_nowait())
        except Empty:
            return heard

    def close(self) -> None:
        """See `Inbox.close`."""


class ThreadChannel(Generic[Key]):
    """What passes between a worker in a thread and the inbox that it was made by."""

    def __init__(self, key: Key, said: SimpleQueue[tuple[Key, Any]]) -> None:
        self._key = key
        self._said = said
        self._asked = SimpleQueue[Any]()

    def ask(self, message: Any) -> None:
        """Tell the worker something."""
        self._asked.put(message)

    def recv(self) -> Any:
        """On the worker's side: what it is told next."""
        return self._asked.get()

    def send(self, message: Any) -> None:
        """On the worker's side: say something."""
        self._said.put((self._key, message))

    def close(self) -> None:
        """On the worker's side: say that it is gone."""
        self.send(GONE)


class ProcessInbox(Inbox[Key]):
    """Of workers in processes, by their connections."""

    def __init__(self) -> None:
        self._select = selectors.DefaultSelector()

    def add(self, key: Key, connection: Connection) -> None:
        """Listen to another worker."""
        self._select.register(connection, selectors.EVENT_READ, key)

    def remove(self, connection: Connection) -> None:
        """Listen to a worker no more."""
        self._select.unregister(connection)

    def wait(self, timeout: float) -> list[tuple[Key, Any]]:
        """See `Inbox.wait`."""
        return [(ready.data, _read(ready.fileobj)) for ready, _ in self._select.select(timeout)]

    def close(self) -> None:
        """See `Inbox.close`."""
        self._select.close()


def _read(connection: Any) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        return GONE
