"""Steps any simulator in chunks: endings inside chunks, horizon, partial reset and episode statistics, written once.

Shapes: B slots, C actions of a chunk, A action dimensions, H horizon, n the slots that are playing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult, Outcome, Step
from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.protocol import Simulator, Slots, Wording

NextScenario = Callable[[int], Scenario | None]
"""The next scenario of a slot, or None where there is nothing to play now."""

KeepFinal = Literal["truncated", "ended", "none"]
"""Whose last observations a host keeps: of truncated episodes, of all that ended, or of none."""


class Host:
    """Plays the episodes that it is given in all slots of a simulator, a chunk at a time.

    A slot whose episode ends starts its next scenario before the next chunk (partial reset); it idles, with nothing
    valid, where it is given none, and is asked again after each chunk. Observations stay in `observation`, rows of idle
    slots keep their last.

    Args:
        simulator: the batch of slots.
        next_scenario: where episodes come from.
        horizon: control steps after which an episode is truncated.
        keep_final: whose last observations `Step.final` holds.
        on_action: called with the slots that just played one action, to film them; it makes chunks play action by
            action, or as few at a time as the simulator plays together.
        observation: where observations are written, B rows; arrays of its own by default.
    """

    def __init__(
        self,
        simulator: Simulator,
        next_scenario: NextScenario,
        horizon: int,
        *,
        keep_final: KeepFinal = "truncated",
        on_action: Callable[[Slots], None] | None = None,
        observation: Observation | None = None,
    ) -> None:
        slots = simulator.slots
        self.simulator = simulator
        self.horizon = horizon
        self.observation = observation or simulator.spec.observation(slots)
        self.scenarios: list[Scenario | None] = [None] * slots
        """What each slot plays, as its scene words it; None where it idles."""
        self.elapsed = np.zeros(slots, np.intp)
        """[B] control steps that each slot's episode has had, 0 where it idles."""
        self._playing = np.zeros(slots, np.bool_)
        self._return = np.zeros(slots)
        self._success_once = np.zeros(slots, np.bool_)
        self._success_at_end = np.zeros(slots, np.bool_)
        self._sits_out = np.zeros(slots, np.bool_)
        self._next_scenario = next_scenario
        self._wording = simulator if isinstance(simulator, Wording) else None
        self._keep_final = keep_final
        self._on_action = on_action

    def start(self) -> Observation:
        """Begin an episode in every slot."""
        self._begin(np.arange(self.simulator.slots))
        self._observe(self.playing)
        return self.observation

    @property
    def playing(self) -> Slots:
        """The slots that have an episode."""
        return self._playing.nonzero()[0]

    def step(self, actions: NDArray[np.float32]) -> Step:
        """Play a chunk `actions` [B, C, A] in every slot that has an episode. Rows of idle slots are ignored.

        Raises ConfigError for a chunk that the simulator cannot play, and SimulatorError for an action that is not
        finite (actions past the horizon may be anything), and for what the simulator sends: numbers that are not
        finite, arrays of another shape or type.
        """
        spec = self.simulator.spec
        if actions.shape[1] % spec.actions_together:
            raise ConfigError(
                f"{spec.name} plays {spec.actions_together} actions as one motion, and the policy's chunk has "
                f"{actions.shape[1]}, which is no multiple; change the simulator's option or the policy's chunk"
            )
        slots, chunk = np.flatnonzero(self._playing & ~self._sits_out), actions.shape[1]
        self._sits_out[:] = False
        actions, before = actions[slots], self.elapsed[slots]
        limits = np.minimum(chunk, self.horizon - before)
        self._check_finite(slots, actions, limits)
        outcome = self._play(slots, actions, limits)

        position = np.arange(chunk)
        valid = _played(outcome, limits)
        self._check_outcome(slots, outcome, valid, before)
        reward = np.where(valid, outcome.reward, np.float32(0))
        terminated, success = outcome.terminated & valid, outcome.success & valid
        truncated = valid & (before[:, None] + position + 1 == self.horizon) & ~terminated

        # Played actions are the first ones of a chunk, so the last of them is at their count.
        played = valid.sum(axis=1)
        self.elapsed[slots] = before + played
        self._earn(slots, reward)
        self._success_once[slots] |= success.any(axis=1)
        self._success_at_end[slots] = success[np.arange(len(slots)), played - 1]

        ended = slots[(terminated | truncated).any(axis=1)]
        keep = {"ended": ended, "truncated": slots[truncated.any(axis=1)], "none": slots[:0]}[self._keep_final]
        self._observe(keep)
        final_observation = self.observation.take(keep)
        results = [self._result(slot) for slot in ended.tolist()]
        self._playing[ended] = False
        self._begin(np.flatnonzero(~self._playing))
        self._observe(self.playing)

        return Step(
            reward=self._scatter(slots, reward),
            terminated=self._scatter(slots, terminated),
            truncated=self._scatter(slots, truncated),
            success=self._scatter(slots, success),
            valid=self._scatter(slots, valid),
            state=self._scatter(slots, np.where(valid[..., None], outcome.state, np.float32(0))),
            final=final_observation,
            final_slots=keep,
            episodes=results,
        )

    def restore(self, episodes: Sequence[tuple[Scenario, NDArray[np.float32]] | None]) -> Observation:
        """Bring every slot to where an episode was, by playing its actions [n, A] again; None is a slot that idles.

        An episode that ends on the way, in a simulator that does not repeat itself, starts over. It sits the next chunk
        out, whose actions may have been decided for what is no longer there.
        """
        for slot, episode in enumerate(episodes):
            self._assign(slot, None if episode is None else episode[0])
        slots = self.playing
        if not len(slots):
            return self.observation
        self._reset(slots)
        tracks = [episode[1] for episode in episodes if episode is not None]
        counts = np.array([len(track) for track in tracks])
        if counts.any():
            actions = np.zeros((len(slots), counts.max(), self.simulator.spec.action_dim), np.float32)
            for row, track in enumerate(tracks):
                if len(track):
                    actions[row, : len(track)] = track
            outcome = self._shaped(self.simulator.step(slots, actions, counts), actions)
            self._check_outcome(slots, outcome, _played(outcome, counts), np.zeros_like(counts))
            self.elapsed[slots] = counts
            self._earn(slots, outcome.reward)
            self._success_once[slots] = outcome.success.any(axis=1)
            self._start_over(slots[outcome.terminated.any(axis=1)])
        self._observe(slots)
        return self.observation

    def _check_finite(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> None:
        """Refuse a number that is not finite in actions [n, C, A], of which the first `limits` [n] are to be played."""
        if np.isfinite(actions).all():
            return
        played = np.arange(actions.shape[1]) < limits[:, None]
        for row, c, dimension in np.argwhere(~np.isfinite(actions) & played[..., None])[:1].tolist():
            slot, name = int(slots[row]), self.simulator.spec.actions[dimension].name
            raise SimulatorError(
                f"{self.scenario(slot).id}, slot {slot}: at control step {self.elapsed[slot] + c + 1} the action's "
                f"{name!r} is {actions[row, c, dimension]}, which no simulator can play; whatever chose it has "
                "diverged, or divides by zero"
            )

    def _shaped(self, outcome: Outcome, actions: NDArray[np.float32]) -> Outcome:
        """What a simulator returned for actions [n, C, A]. Raises SimulatorError for arrays of other shapes or types,
        which NumPy would stretch or reinterpret without a word.
        """
        rows, state = actions.shape[:2], self.simulator.spec.state_dim
        for name, shape, kind in (
            ("reward", rows, np.floating),
            ("terminated", rows, np.bool_),
            ("success", rows, np.bool_),
            ("state", (*rows, state), np.floating),
        ):
            found: Any = getattr(outcome, name)
            if not isinstance(found, np.ndarray) or found.shape != shape or not np.issubdtype(found.dtype, kind):
                what = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
                raise SimulatorError(
                    f"{self.simulator.spec.name}: step() returned {name} as {what}; it must be an array "
                    f"{kind.__name__.rstrip('_')} {list(shape)}"
                )
        return outcome

    def _check_outcome(
        self, slots: Slots, outcome: Outcome, valid: NDArray[np.bool_], before: NDArray[np.intp]
    ) -> None:
        """Refuse a number that is not finite in what came of the `valid` actions [n, C] after `before` [n] steps."""
        for name, values in (("reward", outcome.reward[..., None]), ("privileged state", outcome.state)):
            with np.errstate(over="ignore"):
                stored = values.astype(np.float32, copy=False)
            for row, c, place in np.argwhere(~np.isfinite(stored) & valid[..., None])[:1].tolist():
                self._refuse_number(int(slots[row]), int(before[row]) + c + 1, name, float(values[row, c, place]))

    def _check_observation(self, slots: Slots) -> None:
        """Refuse a number that is not finite in what is seen of slots."""
        seen = self.observation
        for name, values in (("proprioception", seen.proprioception[slots]), ("privileged state", seen.state[slots])):
            for row, place in np.argwhere(~np.isfinite(values))[:1].tolist():
                slot = int(slots[row])
                self._refuse_number(slot, int(self.elapsed[slot]), f"{name}, entry {place},", float(values[row, place]))

    def _refuse_number(self, slot: int, step: int, name: str, found: float) -> NoReturn:
        raise SimulatorError(
            f"{self.scenario(slot).id}, slot {slot}: at control step {step} the simulator {self.simulator.spec.name!r} "
            f"sent a {name} of {found:g}, no finite float32 number; mend it there, for nothing can be learned from it"
        )

    def _scatter(self, slots: Slots, values: NDArray[Any]) -> NDArray[Any]:
        """Values of some slots to rows of all, the others zero."""
        if len(slots) == self.simulator.slots:
            return values
        full = np.zeros((self.simulator.slots, *values.shape[1:]), values.dtype)
        full[slots] = values
        return full

    def _play(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        chunk = actions.shape[1]
        if not len(slots):
            return Outcome.empty(0, chunk, self.simulator.spec.state_dim)
        if self._on_action is None:
            return self._shaped(self.simulator.step(slots, actions, limits), actions)
        outcome = Outcome.empty(len(slots), chunk, self.simulator.spec.state_dim)
        going = np.ones(len(slots), np.bool_)
        together = self.simulator.spec.actions_together
        for c in range(0, chunk, together):
            rows = np.flatnonzero(going & (c < limits))
            if not len(rows):
                break
            now = slice(c, c + together)
            action = actions[rows, now]
            part = self._shaped(
                self.simulator.step(slots[rows], action, np.minimum(limits[rows] - c, together)), action
            )
            outcome.reward[rows, now], outcome.terminated[rows, now] = part.reward, part.terminated
            outcome.success[rows, now], outcome.state[rows, now] = part.success, part.state
            going[rows] &= ~part.terminated.any(axis=1)
            self._on_action(slots[rows])
        return outcome

    def _earn(self, slots: Slots, reward: NDArray[np.float32]) -> None:
        """Add rewards [n, C] one after another, so that a return is the same to the last bit in whatever chunks."""
        self._return[slots] = np.cumsum(np.column_stack([self._return[slots], reward]), axis=1)[:, -1]

    def _result(self, slot: int) -> EpisodeResult:
        once, at_end = bool(self._success_once[slot]), bool(self._success_at_end[slot])
        return EpisodeResult(
            self.scenario(slot), once, at_end, float(self._return[slot]), int(self.elapsed[slot]), slot
        )

    def _begin(self, slots: Slots) -> None:
        for slot in slots.tolist():
            self._assign(slot, self._next_scenario(slot))
        self._reset(slots[self._playing[slots]])

    def _start_over(self, slots: Slots) -> None:
        for slot in slots.tolist():
            self._assign(slot, self.scenarios[slot])
        self._sits_out[slots] = True
        self._reset(slots)

    def _reset(self, slots: Slots) -> None:
        if len(slots):
            self.simulator.reset(slots, [self.scenario(slot) for slot in slots.tolist()])
        if self._wording is not None:
            for slot in slots.tolist():
                self.scenarios[slot] = replace(self.scenario(slot), instruction=self._wording.wording(slot))

    def _assign(self, slot: int, scenario: Scenario | None) -> None:
        """Put a slot before the first action of a scenario, or let it idle."""
        self.scenarios[slot] = scenario
        self._playing[slot] = scenario is not None
        self.elapsed[slot] = 0
        self._return[slot] = 0
        self._success_once[slot] = self._success_at_end[slot] = False

    def scenario(self, slot: int) -> Scenario:
        """What a slot plays that has an episode."""
        scenario = self.scenarios[slot]
        assert scenario is not None
        return scenario

    def _observe(self, slots: Slots) -> None:
        if len(slots):
            self.simulator.observe(slots, self.observation)
            self._check_observation(slots)


def _played(outcome: Outcome, limits: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[n, C], the actions that were played: below the `limits` [n], and none after a termination."""
    ended_before = np.cumsum(outcome.terminated, axis=1) - outcome.terminated > 0
    return (np.arange(outcome.terminated.shape[1]) < limits[:, None]) & ~ended_before
