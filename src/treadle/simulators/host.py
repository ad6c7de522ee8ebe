"""Steps any simulator in chunks: endings inside chunks, horizon, partial reset and episode statistics, written once.

Shapes: B slots, C actions of a chunk, A action dimensions, n the slots that are playing.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult, Outcome, Step
from treadle.simulators.protocol import Simulator, Slots

ScenarioSource = Callable[[int], Scenario | None]
"""The next scenario of a slot, or None where nothing is left to play."""


def one_after_another(scenarios: Iterable[Scenario]) -> ScenarioSource:
    """A source that hands out each scenario once, to whichever slot asks first."""
    remaining = iter(scenarios)
    return lambda _: next(remaining, None)


@dataclass(slots=True)
class _Episode:
    """One slot's episode so far; `actions` make it possible to play it again."""

    scenario: Scenario
    elapsed: int = 0
    episode_return: float = 0.0
    success_once: bool = False
    success_at_end: bool = False
    actions: list[NDArray[np.float32]] = field(default_factory=list)


class Host:
    """Plays the episodes that a source hands out in all slots of a simulator, a chunk at a time.

    A slot whose episode ends starts its next scenario before the next chunk (partial reset); it idles, with nothing
    valid, once its source returns None. Observations stay in `observation`, rows of idle slots keep their last.

    Args:
        simulator: the batch of slots.
        next_scenario: where episodes come from.
        horizon: control steps after which an episode is truncated.
        keep_final: whose last observations `Step.final` holds: of truncated episodes, of all that ended, or of none.
        on_action: called with the slots that just played one action, to film them; it makes chunks play action by
            action.
    """

    def __init__(
        self,
        simulator: Simulator,
        next_scenario: ScenarioSource,
        horizon: int,
        *,
        keep_final: Literal["truncated", "ended", "none"] = "truncated",
        on_action: Callable[[Slots], None] | None = None,
    ) -> None:
        spec = simulator.spec
        self.simulator = simulator
        self.horizon = horizon
        self.observation = Observation.empty(
            simulator.slots, len(spec.cameras), spec.height, spec.width, spec.proprioception_dim, spec.state_dim
        )
        self._next_scenario = next_scenario
        self._keep_final = keep_final
        self._on_action = on_action
        self._episodes: list[_Episode | None] = [None] * simulator.slots

    def start(self) -> Observation:
        """Begin an episode in every slot."""
        self._begin(np.arange(self.simulator.slots))
        self._observe(self.playing)
        return self.observation

    @property
    def playing(self) -> Slots:
        """The slots that have an episode."""
        return np.array([slot for slot, episode in enumerate(self._episodes) if episode is not None], np.intp)

    @property
    def scenarios(self) -> list[Scenario | None]:
        """What each slot plays."""
        return [None if episode is None else episode.scenario for episode in self._episodes]

    @property
    def elapsed(self) -> NDArray[np.intp]:
        """[B] control steps that each slot's episode has had."""
        return np.array([0 if episode is None else episode.elapsed for episode in self._episodes], np.intp)

    def step(self, actions: NDArray[np.float32]) -> Step:
        """Play a chunk `actions` [B, C, A] in every slot that has an episode. Rows of idle slots are ignored."""
        slots, chunk = self.playing, actions.shape[1]
        limits = np.minimum(chunk, self.horizon - self.elapsed[slots])
        outcome = self._play(slots, actions[slots], limits)

        position = np.arange(chunk)
        ended_before = np.cumsum(outcome.terminated, axis=1) - outcome.terminated > 0
        valid = (position < limits[:, None]) & ~ended_before
        at_horizon = self.elapsed[slots][:, None] + position + 1 == self.horizon
        truncated = valid & at_horizon & ~outcome.terminated

        ended = self._account(slots, actions[slots], outcome, valid, truncated)
        keep = {"ended": ended, "truncated": slots[truncated.any(axis=1)], "none": slots[:0]}[self._keep_final]
        final_observation = self._final(keep)
        results = [self._result(slot) for slot in ended]
        self._begin(ended)
        self._observe(self.playing)

        def scatter(rows: NDArray[Any]) -> NDArray[Any]:
            full = np.zeros((self.simulator.slots, *rows.shape[1:]), rows.dtype)
            full[slots] = rows
            return full

        return Step(
            reward=scatter(np.where(valid, outcome.reward, np.float32(0))),
            terminated=scatter(outcome.terminated & valid),
            truncated=scatter(truncated),
            success=scatter(outcome.success & valid),
            valid=scatter(valid),
            state=scatter(outcome.state * valid[..., None]),
            final=final_observation,
            final_slots=keep,
            episodes=results,
        )

    def state_dict(self) -> list[dict[str, Any] | None]:
        """The episodes that are under way, as plain data: a scenario and the actions that it has had."""
        return [
            None
            if episode is None
            else {
                "scenario": asdict(episode.scenario),
                "actions": [action.tolist() for action in episode.actions],
                "episode_return": episode.episode_return,
                "success_once": episode.success_once,
            }
            for episode in self._episodes
        ]

    def load_state_dict(self, state: list[dict[str, Any] | None]) -> Observation:
        """Bring every slot to where `state` left it, by playing its episode's actions again."""
        for slot, saved in enumerate(state):
            if saved is None:
                continue
            self.observation.instructions[slot] = saved["scenario"]["instruction"]
            self._episodes[slot] = _Episode(
                Scenario(**saved["scenario"]),
                elapsed=len(saved["actions"]),
                episode_return=saved["episode_return"],
                success_once=saved["success_once"],
                actions=[np.array(action, np.float32) for action in saved["actions"]],
            )
        slots = self.playing
        if not len(slots):
            return self.observation
        episodes = [self._episodes[slot] for slot in slots]
        self.simulator.reset(slots, [episode.scenario for episode in episodes if episode is not None])
        elapsed = self.elapsed[slots]
        actions = np.zeros((len(slots), max(elapsed, default=0), self.simulator.spec.action_dim), np.float32)
        for row, episode in enumerate(episodes):
            if episode is not None and episode.actions:
                actions[row, : episode.elapsed] = episode.actions
        self.simulator.step(slots, actions, elapsed)
        self._observe(slots)
        return self.observation

    def _play(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        if self._on_action is None:
            return self.simulator.step(slots, actions, limits)
        chunk = actions.shape[1]
        outcome = Outcome.empty(len(slots), chunk, self.simulator.spec.state_dim)
        going = np.ones(len(slots), np.bool_)
        for c in range(chunk):
            rows = np.flatnonzero(going & (c < limits))
            if not len(rows):
                break
            one = self.simulator.step(slots[rows], actions[rows, c : c + 1], np.ones(len(rows), np.intp))
            outcome.reward[rows, c] = one.reward[:, 0]
            outcome.terminated[rows, c] = one.terminated[:, 0]
            outcome.success[rows, c] = one.success[:, 0]
            outcome.state[rows, c] = one.state[:, 0]
            going[rows] &= ~one.terminated[:, 0]
            self._on_action(slots[rows])
        return outcome

    def _account(
        self,
        slots: Slots,
        actions: NDArray[np.float32],
        outcome: Outcome,
        valid: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> Slots:
        """Add the chunk to each slot's episode; return the slots whose episode ended."""
        for row, slot in enumerate(slots):
            episode = self._episodes[slot]
            assert episode is not None
            played = int(valid[row].sum())
            episode.elapsed += played
            episode.actions.extend(actions[row, :played].copy())
            episode.episode_return += float(outcome.reward[row, :played].sum())
            episode.success_once |= bool(outcome.success[row, :played].any())
            episode.success_at_end = bool(outcome.success[row, played - 1])
        ends = (outcome.terminated & valid) | truncated
        return slots[ends.any(axis=1)]

    def _result(self, slot: int) -> EpisodeResult:
        episode = self._episodes[slot]
        assert episode is not None
        return EpisodeResult(
            episode.scenario,
            episode.success_once,
            episode.success_at_end,
            episode.episode_return,
            episode.elapsed,
        )

    def _final(self, slots: Slots) -> Observation:
        if len(slots):
            self.simulator.observe(slots, self.observation)
        return self.observation.take(slots)

    def _begin(self, slots: Slots) -> None:
        starting: list[int] = []
        scenarios: list[Scenario] = []
        for slot in slots.tolist():
            scenario = self._next_scenario(slot)
            self._episodes[slot] = None if scenario is None else _Episode(scenario)
            if scenario is not None:
                starting.append(slot)
                scenarios.append(scenario)
                self.observation.instructions[slot] = scenario.instruction
        if starting:
            self.simulator.reset(np.array(starting, np.intp), scenarios)

    def _observe(self, slots: Slots) -> None:
        if len(slots):
            self.simulator.observe(slots, self.observation)
