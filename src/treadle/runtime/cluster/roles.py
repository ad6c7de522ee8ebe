# What Ray's handles return is untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The roles of a run as the loop sees them, where players and ranks are members in other processes."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treadle.data.step import EpisodeResult
from treadle.errors import MemberLostError
from treadle.evaluation.evaluate import Report
from treadle.runtime.cluster.engine import Handle
from treadle.runtime.cluster.messages import Ended, Part
from treadle.runtime.cluster.team import Team
from treadle.runtime.player import PlayReport, join_states
from treadle.runtime.roles import Chosen, Film
from treadle.runtime.weights import Weights
from treadle.simulators.protocol import SimulatorSpec

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Shares:
    """Where the parts of a rollout are."""

    parts: dict[tuple[int, Part], Any]
    """By rank and part: Ray's reference, None where the rank's own process played it."""
    taken: bool = field(default=False)
    """Every rank has its parts."""


class RemotePlayers:
    """Players in processes of their own. One that is lost is replaced, and what was lost with it is played again.

    Args:
        team: the members.
        trainers: they publish the weights that a new player begins with.
    """

    def __init__(self, team: Team, trainers: "RemoteTrainers") -> None:
        self._team = team
        self._trainers = trainers
        self._weights: PublishedWeights | None = None
        """What they act with."""
        self._state: dict[str, Any] | None = None
        """Of all slots, after the last rollout."""
        self._reports: list[PlayReport] = []

    def collect(self, wants_more: Callable[[Sequence[Shares]], bool]) -> list[Shares]:
        """See `Players.collect`."""
        rollouts: list[Shares] = []
        while wants_more(rollouts):
            rollouts.append(self.collect_one())
        return rollouts

    def collect_one(self) -> Shares:
        """See `StepwisePlayers.collect_one`."""
        shares, report, self._state = self._surely(self._collect)
        # Members tell times of the clock that all machines share; here they are of this process.
        offset = time.time() - time.perf_counter()
        report.spans = [span._replace(began=span.began - offset, ended=span.ended - offset) for span in report.spans]
        self._reports.append(report)
        return shares

    def receive(self, weights: "PublishedWeights") -> None:
        """See `Players.receive`."""
        self._weights = weights
        self._surely(lambda: self._trainers.send(weights))
        if self._state is None:
            self._state = join_states(self._team.ask_players("player_state"))

    def show(self, weights: "PublishedWeights") -> None:
        """See `Players.show`."""
        self.receive(weights)

    def take_report(self) -> PlayReport:
        """See `Players.take_report`."""
        reports, self._reports = self._reports, []
        return PlayReport.chain(reports)

    def evaluate(self, suite: str, report: Report, played: Collection[int] = ()) -> None:
        """See `Players.evaluate`. Every player has a share of the scenarios."""
        players, done = self._team.players(), set(played)

        def hear(ended: Mapping[int, EpisodeResult], total: int) -> None:
            new = {number: result for number, result in ended.items() if number not in done}
            done.update(new)
            if total:
                report(new, total)

        def play() -> list[Ended]:
            with self._team.playing():
                return self._team.engine.ask(
                    self._team.players(),
                    "evaluate",
                    suite,
                    sorted(done),
                    each=lambda handle: ((_number(handle), len(players)),),
                    meanwhile=lambda: hear(*self._team.ended()),
                )

        for part in self._surely(play):
            hear(*part)

    def film(self, chosen: Sequence[Chosen], size: int) -> list[Film]:
        """See `Players.film`."""

        def play() -> list[Film]:
            with self._team.playing():
                return self._team.engine.ask(self._team.players()[:1], "film", chosen, size)[0]

        return self._surely(play)

    def state_dict(self) -> dict[str, Any]:
        """See `Players.state_dict`."""
        assert self._state is not None
        return self._state

    @property
    def spec(self) -> SimulatorSpec:
        """See `Players.spec`."""
        return self._team.engine.ask(self._team.players()[:1], "spec")[0]

    @property
    def policy_facts(self) -> dict[str, Any]:
        """See `Players.policy_facts`."""
        return self._team.engine.ask(self._team.players()[:1], "policy_facts")[0]

    def _collect(self) -> tuple[Shares, PlayReport, dict[str, Any]]:
        with self._team.playing():
            shares = Shares(self._team.collect())
        report = PlayReport.join(self._team.ask_players("report"))
        return shares, report, join_states(self._team.ask_players("player_state"))

    def forget(self) -> None:
        """Play from where new members stand."""
        self._state, self._reports = None, []

    def _surely(self, work: Callable[[], Any]) -> Any:
        """Do something that players take part in; if one is lost, replace it and do it again.

        Raises:
            MemberLostError: A lost member also trains, or members were lost again and again.
        """
        while True:
            try:
                return work()
            except MemberLostError as lost:
                self._team.note_failure(lost)
                _log.warning("%s; it is replaced, and plays again from the state before", lost.brief)
                assert self._weights is not None
                self._team.replace_players(lost, self._state, self._weights)


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Weights that were published: Ray's reference, which members read from shared memory."""

    version: int
    reference: Any


class RemoteTrainers:
    """Trainer ranks in processes of their own.

    Args:
        team: the members.
    """

    def __init__(self, team: Team) -> None:
        self.team = team

    def wants_more(self, rollouts: Sequence[Shares]) -> bool:
        """See `Trainers.wants_more`."""
        if not rollouts:
            self.team.ask_ranks("forget")
        self._hand_over(rollouts)
        return self.team.ask_ranks("wants_more")[0]

    def update(self, rollouts: Sequence[Shares], version: int) -> dict[str, float]:
        """See `Trainers.update`."""
        self._hand_over(rollouts)
        metrics = self.team.ask_ranks("update", version)[0]
        self.team.note_progress()
        return metrics

    def average(self) -> None:
        """See `Trainers.average`."""
        self.team.ask_ranks("average")

    def publish(self, version: int) -> PublishedWeights:
        """See `Trainers.publish`."""
        return PublishedWeights(version, self.team.publish(version))

    def fetch(self, weights: PublishedWeights) -> Weights:
        """See `Trainers.fetch`."""
        return self.team.engine.get(weights.reference)

    def put(self, weights: Weights) -> PublishedWeights:
        """See `Trainers.put`."""
        return PublishedWeights(weights.version, self.team.engine.put(weights))

    def send(self, weights: "PublishedWeights") -> None:
        """Let every player act with published weights."""
        self.team.send_weights(weights.reference, weights.version)

    def alarms(self, metrics: dict[str, float]) -> dict[str, str]:
        """See `Trainers.alarms`."""
        return self.team.engine.ask(self.team.ranks()[:1], "alarms", metrics)[0]

    def save(self, directory: Path, version: int, state: dict[str, Any]) -> None:
        """See `Trainers.save`."""
        self.team.ask_ranks("save", directory.resolve(), version, state)

    def finish_saving(self) -> None:
        """See `Trainers.finish_saving`."""
        self.team.ask_ranks("finish_saving")

    def swap_in(self) -> None:
        """See `Trainers.swap_in`."""
        self.team.ask_ranks("swap_in")

    def swap_out(self) -> None:
        """See `Trainers.swap_out`."""
        self.team.ask_ranks("swap_out")

    def export(self, directory: Path) -> None:
        """See `Trainers.export`."""
        self.team.ask_ranks("export", directory.resolve())

    def _hand_over(self, rollouts: Sequence[Shares]) -> None:
        for shares in rollouts:
            if not shares.taken:
                self.team.hand_over(shares.parts)
                shares.taken = True


def _number(handle: Handle) -> int:
    assert handle.place.player is not None
    return handle.place.player.number
