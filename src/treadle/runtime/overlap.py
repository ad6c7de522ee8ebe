"""Playing beside training: a thread plays the rollouts that the loop will ask for."""

from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from treadle.config.schema import TrainConfig
from treadle.errors import ConfigError, SimulatorError
from treadle.evaluation.evaluate import Report
from treadle.runtime.player import PlayReport
from treadle.runtime.roles import Chosen, Film, StepwisePlayers
from treadle.simulators.protocol import SimulatorSpec

GRACE = 10.0
"""Seconds that a rollout under way may take to end, when a run is stopped at once."""


@dataclass(frozen=True, slots=True)
class _Played:
    rollout: Any
    report: PlayReport
    state: dict[str, Any]
    """Of all slots, after the rollout."""


class OverlappedPlayers:
    """Players whose rollouts are played by a thread, while the loop trains.

    Update k learns from rollouts of version max(0, k - staleness), whoever was faster: what is played does not depend
    on time. So nothing is played that is not learnt from, and at most `staleness` updates' rollouts wait.

    Args:
        players: they play, in the thread; nobody else may call them.
        config: the run's settings.
    """

    def __init__(self, players: StepwisePlayers, config: TrainConfig) -> None:
        self._players = players
        self._staleness = config.staleness
        self._rollouts, self._refills = config.needs.rollouts, config.needs.refills
        self._iterations = config.iterations
        self._thread = ThreadPoolExecutor(1, "players")
        self._jobs = deque[Future[_Played]]()
        self.begin(0, ())

    def begin(self, version: int, published: Sequence[Any]) -> None:
        """Stand before update number `version`, with the published weights that its rollouts, and later ones, need:
        those of this version, and of as many before it as rollouts may be older.
        """
        self._weights = {weights.version: weights for weights in published}
        self._update = version
        """The update whose rollouts the loop asks for next."""
        self._ahead = version
        """The first update for which nothing is played yet."""
        self._reports: list[PlayReport] = []
        self._state: dict[str, Any] | None = None
        self._acting: Any = None
        """The weights that the rollouts being played are of."""
        self._shown: Any = None
        """The weights that are evaluated."""
        self._broken = False

    def collect(self, wants_more: Callable[[Sequence[Any]], bool]) -> list[Any]:
        """See `Players.collect`. Raises ConfigError where `DataNeeds` does not tell how many are wanted."""
        self._play_ahead()
        rollouts: list[Any] = []
        while wants_more(rollouts):
            if len(rollouts) >= self._rollouts:
                self._refill(len(rollouts))
            rollouts.append(self._next())
        if len(rollouts) < self._rollouts:
            raise ConfigError(
                f"algorithm.kind: an update takes {len(rollouts)} rollouts, and DataNeeds.rollouts says "
                f"{self._rollouts}; let the two agree, or use overlap=none"
            )
        self._update += 1
        # The trainer begins now; so does what it will want next.
        self._play_ahead()
        return rollouts

    def receive(self, weights: Any) -> None:
        """See `Players.receive`; players get them when it is their turn."""
        self._weights[weights.version] = weights
        self._weights = {version: w for version, w in self._weights.items() if version >= self._oldest}
        self._play_ahead()

    def show(self, weights: Any) -> None:
        """See `Players.show`; players get them when they are asked to evaluate or film."""
        self._shown = weights

    def take_report(self) -> PlayReport:
        """See `Players.take_report`."""
        reports, self._reports = self._reports, []
        return PlayReport.chain(reports)

    def evaluate(self, suite: str, report: Report, played: Collection[int] = ()) -> None:
        """See `Players.evaluate`. It begins once what is being played is done."""
        with self._showing():
            self._players.evaluate(suite, report, played)

    def film(self, chosen: Sequence[Chosen], size: int) -> list[Film]:
        """See `Players.film`. As `evaluate`."""
        with self._showing():
            return self._players.film(chosen, size)

    def state_dict(self) -> dict[str, Any]:
        """See `Players.state_dict`: where slots stood after the last rollouts that the loop got."""
        return self._state if self._state is not None else self._players.state_dict()

    @property
    def published(self) -> list[Any]:
        """The weights that a run needs to go on from here, beside the latest."""
        return [self._weights[version] for version in sorted(self._weights)[:-1]]

    @property
    def spec(self) -> SimulatorSpec:
        """See `Players.spec`."""
        return self._players.spec

    @property
    def policy_facts(self) -> dict[str, Any]:
        """See `Players.policy_facts`."""
        return self._players.policy_facts

    def settle(self) -> None:
        """Wait until everything that was begun is played."""
        wait(self._jobs)

    def halt(self) -> None:
        """Drop what is being played, or waits; it ends before this returns."""
        self._broken = True
        wait(self._jobs)
        self._jobs.clear()

    def close(self) -> None:
        """End the thread; a rollout that is being played has a few seconds to end."""
        self._broken = True
        _, left = wait(self._jobs, timeout=GRACE)
        self._thread.shutdown(wait=not left, cancel_futures=True)

    @property
    def _oldest(self) -> int:
        """The oldest version that rollouts not played yet need."""
        return max(0, self._update - self._staleness)

    def _play_ahead(self) -> None:
        """Let the thread play whatever can be played by now."""
        while self._ahead < self._iterations:
            version = max(0, self._ahead - self._staleness)
            # Whether an update wants refills is known when the loop has all of its rollouts.
            if version not in self._weights or (self._refills and self._ahead > self._update):
                return
            self._submit(self._weights[version])
            for _ in range(1, self._rollouts):
                self._submit(None)
            self._ahead += 1

    def _refill(self, count: int) -> None:
        if count >= self._rollouts + self._refills:
            raise ConfigError(
                f"algorithm.kind: an update wants more than {count} rollouts, and DataNeeds says that it takes "
                f"{self._rollouts}, and {self._refills} refills at most; let the two agree, or use overlap=none"
            )
        self._submit(None)

    def _submit(self, weights: Any | None) -> None:
        self._jobs.append(self._thread.submit(self._play, weights))

    def _play(self, weights: Any | None) -> _Played:
        """In the thread: one rollout, with these weights or those before."""
        if self._broken:
            raise SimulatorError("rollouts before this one could not be played")
        try:
            if weights is not None:
                self._players.receive(weights)
                self._acting = weights
            rollout = self._players.collect_one()
            return _Played(rollout, self._players.take_report(), self._players.state_dict())
        except BaseException:
            self._broken = True
            raise

    def _next(self) -> Any:
        played = self._jobs.popleft().result()
        self._reports.append(played.report)
        self._state = played.state
        return played.rollout

    @contextmanager
    def _showing(self) -> Generator[None, None, None]:
        """The players act with what is shown, once what is being played is done; then with what they had."""
        self.settle()
        if self._shown is not None:
            self._players.receive(self._shown)
        yield
        if self._acting is not None:
            self._players.receive(self._acting)
