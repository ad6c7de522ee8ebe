"""What a person watches while checkpoints are evaluated."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from treadle.reporting.console import clock

_LINE_SECONDS = 10.0


class EvaluationConsole:
    """One live line on a terminal; where there is none (CI, pipes), a plain line now and then.

    Args:
        checkpoints: how many will be evaluated, each on the same suites.
        console: where it is shown.
        notes: what there is to say about a manifest before its episodes are played.
    """

    def __init__(
        self,
        checkpoints: int = 1,
        console: Console | None = None,
        notes: Callable[[Mapping[str, Any]], Sequence[str]] = lambda _: (),
    ) -> None:
        self._console = console if console is not None else Console()
        self._notes = notes
        self._checkpoints = checkpoints
        self._started = self._playing = self._last_line = time.monotonic()
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._name = self._stage = ""
        self._begun = 0
        self._wanted: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._successes = self._played = 0
        """Of the present checkpoint, in this call."""
        self._all_played = 0
        """Of all checkpoints, in this call."""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, made: Mapping[str, Any], wanted: Mapping[str, int], done: Mapping[str, int]) -> None:
        """See `Watcher.begin`."""
        if not self._begun:
            # Loading is over, so it does not count for the pace.
            self._playing = time.monotonic()
        self._begun += 1
        name = made["checkpoint"]
        for note in self._notes(made):
            self.message(note)
        self._name, self._wanted, self._done = name, dict(wanted), dict(done)
        self._successes = self._played = 0
        kept = sum(done.values())
        total = sum(wanted.values())
        if kept == total:
            self.message(f"{name}: all {total} episodes were played before; --again plays them anew")
        elif kept:
            self.message(f"{name}: {kept} of {total} episodes were played before")

    def ended(self, suite: str, success: bool) -> None:
        """See `Watcher.ended`."""
        self._stage = suite
        self._done[suite] = self._done.get(suite, 0) + 1
        self._played += 1
        self._all_played += 1
        self._successes += success
        complete = self._done[suite] == self._wanted[suite]
        self._show(self.line(), now=complete)

    def stage(self, text: str) -> None:
        """See `Watcher.stage`."""
        self._show(f"{self._name}  {text}", now=True)

    def message(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def line(self) -> str:
        """Where it stands, in one line of plain ASCII."""
        parts = [f"{self._name}  {self._stage} {self._done[self._stage]}/{self._wanted[self._stage]}"]
        if len(self._wanted) > 1:
            parts.append(f"all {sum(self._done.values())}/{sum(self._wanted.values())}")
        parts.append(f"success {self._successes / self._played:.1%}")
        parts.append(f"left {clock(self.seconds_left())}")
        return "  ".join(parts)

    def seconds_left(self) -> float:
        """Of the whole call, from its pace so far."""
        total = sum(self._wanted.values())
        left = total - sum(self._done.values()) + total * (self._checkpoints - self._begun)
        return left * (time.monotonic() - self._playing) / self._all_played

    def _show(self, text: str, *, now: bool) -> None:
        elapsed = clock(time.monotonic() - self._started)
        if self._live is not None:
            self._live.update(Text(f"[{elapsed}] {text}", no_wrap=True, overflow="ellipsis"), refresh=True)
        elif now or time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            self.message(f"[{elapsed}] {text}")
