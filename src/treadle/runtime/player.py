"""The player: it simulates and decides, with the latest weights that it was given."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.data.span import Span
from treadle.data.step import EpisodeResult
from treadle.errors import ConfigError
from treadle.evaluation.evaluate import Report, play_suite
from treadle.evaluation.films import film_scenarios
from treadle.policies.protocol import Policy, Sampling
from treadle.rollout.actor import Actor
from treadle.rollout.collector import Collector
from treadle.rollout.sources import ScenarioStream
from treadle.runtime.exhaustion import naming_what_to_lower
from treadle.runtime.weights import Weights, load_state
from treadle.simulators.protocol import SimulatorSpec
from treadle.workers.crew import Crew
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session


@dataclass(slots=True)
class PlayReport:
    """What was played for one update."""

    rollouts: int
    episodes: list[EpisodeResult]
    """Episodes that ended."""
    control_steps: int
    seconds: dict[str, float]
    """Wall time of each role, summed over rollouts; the mean over players."""
    spans: list[Span]
    """When simulators and policies were busy."""
    restarts: int = 0
    """Workers that were replaced."""

    @staticmethod
    def chain(reports: "Sequence[PlayReport]") -> "PlayReport":
        """The report of the same players, from one for each of several rollouts."""
        roles = {role for report in reports for role in report.seconds}
        return PlayReport(
            sum(report.rollouts for report in reports),
            [episode for report in reports for episode in report.episodes],
            sum(report.control_steps for report in reports),
            {role: sum(report.seconds.get(role, 0.0) for report in reports) for role in sorted(roles)},
            [span for report in reports for span in report.spans],
            sum(report.restarts for report in reports),
        )

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], spans: list[Span], restarts: int = 0) -> "PlayReport":
        """The report of one player."""
        roles = {name for rollout in rollouts for name in rollout.seconds}
        return cls(
            len(rollouts),
            [episode for rollout in rollouts for episode in rollout.episodes],
            sum(int(rollout.valid.sum()) for rollout in rollouts),
            {role: sum(rollout.seconds.get(role, 0.0) for rollout in rollouts) for role in sorted(roles)},
            spans,
            restarts,
        )

    @staticmethod
    def join(reports: "Sequence[PlayReport]") -> "PlayReport":
        """The report of several players, which played the same number of rollouts."""
        if len(reports) == 1:
            return reports[0]
        spans: list[Span] = []
        workers, lanes = dict[str, int](), 0
        for report in reports:
            # Every player's workers and lanes get numbers of their own.
            moved = [
                span._replace(
                    worker=span.worker + workers.get(span.role, 0), lanes=tuple(lane + lanes for lane in span.lanes)
                )
                for span in report.spans
            ]
            spans += moved
            workers |= {role: 1 + max(s.worker for s in moved if s.role == role) for role in {s.role for s in moved}}
            lanes = 1 + max((lane for span in moved for lane in span.lanes), default=lanes - 1)
        roles = {role for report in reports for role in report.seconds}
        return PlayReport(
            reports[0].rollouts,
            [episode for report in reports for episode in report.episodes],
            sum(report.control_steps for report in reports),
            {role: sum(r.seconds.get(role, 0.0) for r in reports) / len(reports) for role in sorted(roles)},
            sorted(spans, key=lambda span: span.began),
            sum(report.restarts for report in reports),
        )


class Player:
    """A policy with its simulators beside it.

    Args:
        config: the run's settings.
        crew: the simulators; other sessions may use it between two rollouts.
        policy: it acts; the trainer's own policy, or a copy that `receive` keeps up to date.
        slots: which of the run's slots it has; all by default.
        cores: the policy stays on these while it collects; none for any.
    """

    def __init__(
        self,
        config: TrainConfig,
        crew: Crew,
        policy: Policy,
        *,
        slots: slice | None = None,
        cores: tuple[int, ...] = (),
    ) -> None:
        self.crew = crew
        self.policy = policy
        self.version = 0
        """How many updates the policy has had."""
        self._config = config
        self._decisions = config.decisions
        self._slots = slots or slice(0, config.simulator.slots)
        self._rollouts: list[Rollout] = []
        self._restarts = 0
        needs = config.needs
        stream = ScenarioStream(
            crew.count("train", "train"),
            config.simulator.slots,
            config.seed,
            group_size=needs.group_size,
            partial_reset=needs.partial_reset,
            own=self._slots,
        )
        session = Session(config.simulator.horizon, needs.keep_final)
        self._collector = Collector(
            Lanes(crew, session, stream, policy.chunk),
            stream,
            Actor(policy, Sampling(**config.policy.sampling.model_dump()), encode=config.policy.freeze_vision),
            valued=config.has_critic and config.critic.kind == "value_head",
            batch=config.collection.batch,
            cores=cores,
            next_inputs=needs.next_inputs,
        )

    def collect(self, wants_more: Callable[[Sequence[Rollout]], bool]) -> list[Rollout]:
        """Rollouts of the policy as it is, until no more are wanted.

        Raises:
            TreadleError: What a worker raised, or SimulatorError where it died or took too long.
        """
        rollouts: list[Rollout] = []
        while wants_more(rollouts):
            rollouts.append(self.collect_one())
        return rollouts

    def collect_one(self) -> Rollout:
        """One rollout of the policy as it is. Raises as `collect`."""
        with naming_what_to_lower(self._config, "playing"):
            self._rollouts.append(self._collector.collect(self._decisions, self.version))
        return self._rollouts[-1]

    def receive(self, weights: Weights) -> None:
        """Act with these weights from now on."""
        self.version = weights.version
        if weights.policy is not None:
            load_state(self.policy, weights.policy)

    def show(self, weights: Weights) -> None:
        """Evaluate and film with these weights from now on; `receive` comes before the next rollout."""
        self.receive(weights)

    def take_report(self) -> PlayReport:
        """What was played since the last call."""
        rollouts, self._rollouts = self._rollouts, []
        restarts, self._restarts = self.crew.restarts - self._restarts, self.crew.restarts
        return PlayReport.of(rollouts, self._collector.take_spans(), restarts)

    def evaluate(
        self, suite: str, report: Report, played: Container[int] = (), share: tuple[int, int] = (0, 1)
    ) -> None:
        """Play the evaluation scenarios of a suite, or a share of them. See `play_suite`."""
        config = self._config
        with naming_what_to_lower(config, "playing"):
            play_suite(
                self.policy,
                self.crew,
                config.evaluation_horizon,
                config.evaluation,
                suite,
                report,
                played=played,
                share=share,
            )

    def film(self, chosen: Sequence[tuple[str, int]], size: int) -> list[tuple[EpisodeResult, NDArray[np.uint8]]]:
        """Film evaluation scenarios, by suite and place: results, and frames [length + 1, size, size, 3]."""
        evaluation, films = self._config.evaluation, list[tuple[EpisodeResult, NDArray[np.uint8]]]()
        for suite, place in chosen:
            scenarios = self.crew.scenarios(suite, "evaluation", 0, place + 1)
            horizon = evaluation.horizon_of(suite, self._config.evaluation_horizon)
            films += film_scenarios(
                self.policy, self.crew, suite, scenarios, [place], horizon, evaluation.sampling, size
            )
        return films

    @property
    def spec(self) -> SimulatorSpec:
        """The fixed facts of the simulator."""
        return self.crew.spec

    @property
    def policy_facts(self) -> dict[str, Any]:
        """See `Policy.describe`."""
        return self.policy.describe()

    def state_dict(self) -> dict[str, Any]:
        """Where every own slot stands, as plain data."""
        return self._collector.state_dict()

    def load_state_dict(self, state: dict[str, Any], version: int) -> None:
        """Go on from the `state` of all slots, of however many players; the policy has had `version` updates."""
        self.version = version
        self._collector.load_state_dict(_of_slots(state, self._slots))


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of all slots, from those of players in the order of their slots."""
    return {
        name: join_states([state[name] for state in states])
        if isinstance(value, dict)
        else [entry for state in states for entry in state[name]]
        for name, value in states[0].items()
    }


def _of_slots(state: dict[str, Any], slots: slice) -> dict[str, Any]:
    return {
        name: _of_slots(value, slots) if isinstance(value, dict) else value[slots]  # pyright: ignore[reportUnknownArgumentType]
        for name, value in state.items()
    }


def check_decisions(config: TrainConfig, chunk: int) -> None:
    """Without partial reset, a rollout must hold whole episodes. Raises ConfigError."""
    wanted = -(-config.simulator.horizon // chunk)
    if not config.needs.partial_reset and config.decisions < wanted:
        raise ConfigError(
            f"decisions {config.decisions} with algorithm.partial_reset false: a rollout holds whole episodes, of "
            f"simulator.horizon {config.simulator.horizon} control steps at {chunk} per decision; use "
            f"decisions={wanted}"
        )
