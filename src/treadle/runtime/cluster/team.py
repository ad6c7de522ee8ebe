# What Ray's handles return is untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The members of a run: how they start, what passes between them, and how lost ones are replaced."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol

from treadle.config.schema import TrainConfig
from treadle.errors import MemberLostError
from treadle.runtime.cluster.engine import Engine, Handle
from treadle.runtime.cluster.messages import Ended, Part, routes
from treadle.runtime.member import Start
from treadle.runtime.placement import Placement, place
from treadle.runtime.weights import Weights

ATTEMPTS = 3
"""The run ends after so many losses with no iteration in between."""


class Published(Protocol):
    """Weights that wait to be received."""

    @property
    def version(self) -> int:
        """How many updates they have had."""
        ...

    @property
    def reference(self) -> Any:
        """Ray's reference."""
        ...


class Team:
    """The members of a run.

    Args:
        config: the run's settings.
        engine: it starts members and waits for them.
        start: what they load.
        announce: called with each placement before its members start.

    Raises:
        TreadleError: A mistake that the user can mend.
        MemberLostError: A member died while it started.
    """

    def __init__(
        self, config: TrainConfig, engine: Engine, start: Start, announce: Callable[[Placement], None]
    ) -> None:
        self.engine = engine
        self._config = config
        self._start = start
        self._announce = announce
        self._failures = 0
        self.state_dim = 0
        self._open()

    def players(self) -> list[Handle]:
        """Members that play, in order of their slots."""
        handles = [handle for handle in self.engine.handles if handle.place.player]
        return sorted(handles, key=lambda handle: handle.place.player.number if handle.place.player else 0)

    def ranks(self) -> list[Handle]:
        """Members that train, in order of their slots."""
        handles = [handle for handle in self.engine.handles if handle.place.rank]
        return sorted(handles, key=lambda handle: handle.place.rank.number if handle.place.rank else 0)

    def ask_players(self, name: str, *arguments: Any) -> list[Any]:
        """Let every player do something; what came of it, in order. Raises as `Engine.ask`."""
        return self.engine.ask(self.players(), name, *arguments)

    def ask_ranks(self, name: str, *arguments: Any) -> list[Any]:
        """Let every rank do something; what came of it, in order. Raises as `Engine.ask`."""
        return self.engine.ask(self.ranks(), name, *arguments)

    def collect(self) -> dict[tuple[int, Part], Any]:
        """Let every player play one rollout; where the parts of it are, by rank. Raises as `Engine.ask`."""
        players, ranks = self.players(), self.ranks()
        where: dict[tuple[int, Part], Any] = {}
        calls: dict[Handle, Any] = {}
        for handle in players:
            wanted: list[tuple[int, Part]] = []
            for number, route in enumerate(self._routes):
                for part in route:
                    if part.player == _player(handle):
                        where[number, part] = None
                        wanted += [] if ranks[number] is handle else [(number, part)]
            shares = [part for _, part in wanted]
            references = handle.actor.collect.options(num_returns=1 + len(shares)).remote(shares)
            answer, *parts = references if shares else [references]
            calls[handle] = answer
            where |= dict(zip(wanted, parts, strict=True))
        answers = self.engine.wait(calls, "play a rollout")
        for handle in players:
            self.engine.value(handle, answers[handle][0] if isinstance(answers[handle], tuple) else answers[handle])
        return where

    @contextmanager
    def playing(self) -> Generator[None, None, None]:
        """Players may act, for as long as the block lasts: where ranks hold parts of a policy that also acts, they
        gather it. Raises as `Engine.ask`.
        """
        gathers = self._placement.sharded and any(handle.place.rank for handle in self.players())
        if gathers:
            self.ask_ranks("gather_policy")
        yield
        if gathers:
            self.ask_ranks("divide_policy")

    def hand_over(self, parts: dict[tuple[int, Part], Any]) -> None:
        """Give every rank its parts of a rollout. Raises as `Engine.ask`."""
        calls = {
            handle: handle.actor.take.remote(route, *(parts[number, part] for part in route))
            for number, (handle, route) in enumerate(zip(self.ranks(), self._routes, strict=True))
        }
        answers = self.engine.wait(calls, "take its part of a rollout")
        for handle in self.ranks():
            self.engine.value(handle, answers[handle])

    def publish(self, version: int) -> Any:
        """The weights as they are now: Ray's reference. Raises as `Engine.ask`."""
        references = {handle: handle.actor.publish.options(num_returns=2).remote(version) for handle in self.ranks()}
        answers = self.engine.wait({handle: both[0] for handle, both in references.items()}, "publish its weights")
        for handle in self.ranks():
            self.engine.value(handle, answers[handle])
        return references[self.ranks()[0]][1]

    def send_weights(self, reference: Any, version: int) -> None:
        """Let players act with weights; a player that shares a rank's policy hears the version alone. Raises as
        `Engine.ask`.
        """
        self.engine.ask(
            self.players(),
            "receive",
            each=lambda handle: (Weights(version),) if handle.place.rank else (reference,),
        )

    def ended(self) -> Ended:
        """Episodes that ended since the last call, of what players evaluate. Raises MemberLostError."""
        found = self.engine.wait({h: h.actor.ended.remote() for h in self.players()}, "tell its progress")
        episodes = {number: result for part, _ in found.values() for number, result in part.items()}
        return episodes, max(total for _, total in found.values())

    def peak_memory(self) -> list[tuple[float, float]]:
        """The most memory that each member has held, in MB: its own, and of graphics cards. Raises MemberLostError."""
        return self.engine.ask(self.engine.handles, "peak_memory")

    def note_failure(self, lost: MemberLostError) -> None:
        """Count a loss. Raises `lost` itself if it is one too many."""
        self._failures += 1
        if self._failures >= ATTEMPTS:
            raise MemberLostError(
                f"{lost.brief} ({self._failures} losses with no iteration in between). What was saved is whole: the "
                "same command goes on from the last checkpoint",
                lost.members,
                lost.last_words,
            )

    def note_progress(self) -> None:
        """An iteration is done: earlier losses do not count any more."""
        self._failures = 0

    def replace_players(self, lost: MemberLostError, state: dict[str, Any] | None, weights: Published) -> None:
        """Replace members that play and do not train; every player goes on from `state`, of all slots, with `weights`.

        Raises:
            MemberLostError: A lost member also trains, or its machine is gone: the whole team must be made again.
        """
        nodes_lost = self.engine.session.machines().lost
        if any(handle.place.rank or handle.place.node in nodes_lost for handle in lost.members):
            raise lost
        numbers = [self._placement.processes.index(handle.place) for handle in lost.members]
        self.engine.end_members(lost.members, grace=0.0)
        started = self.engine.start_members(self._placement, numbers)
        self.engine.ask(started, "open", self._start)
        self.engine.ask(started, "begin", self.state_dim, "", False)
        # A call that was under way elsewhere is done before the next one begins.
        if state is not None:
            self.ask_players("load_player", state, weights.version)
        self.send_weights(weights.reference, weights.version)

    def make_again(self, start: Start) -> None:
        """End every member, and start a new team on the machines that there are. Raises as `Team`."""
        self.engine.release()
        self._start = start
        self._open()

    def close(self) -> None:
        """End every member."""
        self.engine.release()

    @property
    def placement(self) -> Placement:
        """Where every member is."""
        return self._placement

    def _open(self) -> None:
        engine, config = self.engine, self._config
        self._placement = place(config, engine.session.machines())
        self._routes = routes(self._placement)
        self._announce(self._placement)
        handles = engine.start_members(self._placement, range(len(self._placement.processes)))
        dimensions = engine.ask(handles, "open", self._start)
        self.state_dim = next(dim for dim in dimensions if dim is not None)
        shared = all(handle.place.rank for handle in self.players())
        engine.ask(handles, "begin", self.state_dim, self._meeting(), shared)

    def _meeting(self) -> str:
        """Where ranks meet."""
        if len(self._placement.ranks) == 1:
            return ""
        if self.engine.session.on_one_machine:
            return str(self.engine.session.scratch() / "ranks")
        first = self.ranks()[:1]
        return self.engine.ask(first, "meet")[0]


def _player(handle: Handle) -> int:
    assert handle.place.player is not None
    return handle.place.player.number
