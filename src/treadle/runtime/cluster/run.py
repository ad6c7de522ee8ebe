"""The processes of a run, and the roles that they have for the loop."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from treadle.config.schema import TrainConfig
from treadle.errors import MemberLostError
from treadle.runtime.cluster.engine import Engine
from treadle.runtime.cluster.roles import RemotePlayers, RemoteTrainers
from treadle.runtime.cluster.team import Team
from treadle.runtime.member import Start
from treadle.runtime.placement import Machines, Placement

_log = logging.getLogger(__name__)


class Cluster:
    """A team of members, new or resumed. A context manager: it ends all of them, and Ray where the run started it.

    Args:
        config: the run's settings.
        machine: the devices of this machine.
        start: what members load.
        announce: called with each placement before its members start.

    Raises:
        TreadleError: A mistake that the user can mend.
        MemberLostError: A member died while it started.
    """

    def __init__(
        self, config: TrainConfig, machine: Machines, start: Start, announce: Callable[[Placement], None]
    ) -> None:
        with ExitStack() as opened:
            engine = opened.enter_context(Engine(config, machine.kind, machine.devices[0]))
            self.team = Team(config, engine, start, announce)
            self.trainer = RemoteTrainers(self.team)
            self.players = RemotePlayers(self.team, self.trainer)
            self.players.receive(self.trainer.publish(0))
            self._exit = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    def go_on(self, checkpoint: Path, version: int) -> None:
        """Go on from a checkpoint, with members that have loaded its policy; it has had `version` updates."""
        self.team.engine.ask(self.team.engine.handles, "load", checkpoint)
        self.players.forget()
        self.players.receive(self.trainer.publish(version))

    def make_again(self, lost: MemberLostError, start: Start) -> None:
        """Start a new team in place of one that has lost members.

        Raises:
            MemberLostError: Members were lost again and again.
            PlacementError: Too few machines are left.
        """
        self.team.note_failure(lost)
        self.team.make_again(start)
        self.players.forget()
        self.players.receive(self.trainer.publish(0))
