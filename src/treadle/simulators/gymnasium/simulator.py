"""A batch of Gymnasium environments as a simulator: `simulator.name = "gymnasium:ID"`."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeGuard

import gymnasium
import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.checks import check_suite, entry_of
from treadle.simulators.enumeration import Enumeration, fit_square
from treadle.simulators.gymnasium.actions import ActionMap
from treadle.simulators.gymnasium.reading import (
    as_flag,
    as_number,
    image_places,
    instruction_in,
    instruction_place,
    proprioception_place,
    shown,
    value_at,
)
from treadle.simulators.protocol import ActionKind, SimulatorSpec, Slots

SEEDS = 1_000_000
"""Scenarios of each split: training has the seeds from 0 on, evaluation those from here on."""
RENDERED = "render"
"""The image that is drawn by the environment's `render`."""
ENDING = "terminated"
"""The success that is every termination."""
_SUCCESS_KEYS = ("success", "is_success")
_KEY = "simulator.options."


class GymnasiumSimulator:
    """Environments of one Gymnasium ID, a slot each, stepped one after another; a scenario is a seed of `reset`.

    Actions are the environment's own, clipped to its action space. Its time limit must not be below the horizon.
    """

    def __init__(
        self,
        slots: int,
        *,
        id: str = "",  # noqa: A002 - what follows the colon of a simulator's name
        horizon: int = 60,
        threads: int = 1,
        image: str | Sequence[str] | None = None,
        instruction: str | None = None,
        instruction_key: str | None = None,
        proprioception: str | None = None,
        success: str | None = None,
        actions: ActionKind | Sequence[ActionKind] = "absolute",
        action_range: Sequence[float] | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        """Keys are paths, `agent/image`.

        Args:
            slots: environments.
            id: the ID, as `gymnasium.make` takes it; `module:ID` imports a module that registers it.
            horizon: control steps of an episode.
            threads: not used; processes run environments side by side.
            image: where frames [H, W, 3] uint8 lie in observations, several for several cameras, or `render`; the only
                image by default.
            instruction: what is asked, in every scenario.
            instruction_key: where the instruction lies in observations or in the info of `reset`; the only text by
                default. Enumerating a scenario then resets an environment to read it.
            proprioception: where a vector of numbers lies in observations; the only one by default, '' for none.
            success: key of the step's info that says whether the goal holds, if not at every step then at an ending;
                or `terminated` where every ending is a success; `success` or `is_success` by default.
            actions: what the dimensions of an action are: `absolute` targets, `relative` motions, where 0 stands still,
                or a `gripper` in [0, 1], 1 open; one word for all of them, or a list with one for each.
            action_range: lowest and highest number of the policy's actions, mapped onto the bounds of the action
                space; by default actions are taken as they are.
            environment: further arguments of `gymnasium.make`.

        Raises:
            ConfigError: an unknown ID, or an option that does not fit what the environment offers.
        """
        if not id:
            raise ConfigError("simulator.name: 'gymnasium' needs the ID of an environment; write gymnasium:ID")
        if instruction is not None and instruction_key is not None:
            raise ConfigError(f"{_KEY}instruction and {_KEY}instruction_key: set one of the two")
        self.slots = slots
        self._id = id
        self._arguments = dict(environment or {})
        self._success = success
        first = self._make()
        if "render_mode" not in self._arguments and "rgb_array" in (first.metadata.get("render_modes") or ()):
            first.close()
            self._arguments["render_mode"] = "rgb_array"
            first = self._make()
        self._environments: list[gymnasium.Env[Any, Any]] = [first]
        observation, info = first.reset(seed=0)
        space = first.observation_space
        self._images = None if image == RENDERED else image_places(image, space)
        self._draws = first.render_mode == "rgb_array"
        if self._images is None and not self._draws:
            raise ConfigError(f"{_KEY}image: {id!r} offers no render_mode 'rgb_array'")
        self._proprioception = proprioception_place(proprioception, space)
        self._instruction = instruction
        self._instruction_place: str | None = None
        if instruction is None:
            self._instruction_place = instruction_place(instruction_key, space, observation, info)
        self._actions = ActionMap(first.action_space, action_range)
        height, width = self._first_frame(first, observation).shape[:2]
        self.spec = SimulatorSpec(
            name=f"gymnasium:{id}",
            cameras=tuple(place or "image" for place in self._images) if self._images else (RENDERED,),
            height=height,
            width=width,
            actions=self._actions.meaning(actions),
            proprioception_dim=self._proprioception[1] if self._proprioception else 0,
            state_dim=0,
            horizon=horizon,
            control_hz=float(first.metadata.get("render_fps") or 10),
        )
        self._environments += [self._make() for _ in range(slots - 1)]
        self._reader: gymnasium.Env[Any, Any] | None = None
        self._read_instruction = lru_cache(maxsize=4096)(self._read)
        self._observations: list[Any] = [None] * slots
        self._playing: list[Scenario | None] = [None] * slots
        self._elapsed = np.zeros(slots, np.intp)

    def suites(self) -> tuple[str, ...]:
        """`train` alone: an environment has one distribution."""
        return ("train",)

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """A million seeds. Raises ConfigError for an unknown suite."""
        check_suite(self.spec.name, suite, split, self.suites())
        return Enumeration(SEEDS, lambda index: self._scenario(suite, split, index))

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """The scenario's own; others that would fit its scene are not known."""
        return [scenario.instruction]

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """Put each slot at the start of its scenario.

        Raises SimulatorError where the environment asks for something else than when the scenario was enumerated.
        """
        for slot, scenario in zip(slots.tolist(), scenarios, strict=True):
            observation, info = self._environments[slot].reset(seed=_seed(scenario.split, scenario.index))
            if self._instruction_place is not None:
                asked = instruction_in(self._instruction_place, observation, info)
                if asked != scenario.instruction:
                    raise SimulatorError(
                        f"{scenario.id}, slot {slot}: the environment asks {asked!r} where it asked "
                        f"{scenario.instruction!r} before; what it asks must follow from the seed of reset()"
                    )
            self._observations[slot] = observation
            self._playing[slot] = scenario
            self._elapsed[slot] = 0

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """Play actions [n, C, A], at most `limits` [n] in each slot, until the environment terminates."""
        outcome = Outcome.empty(len(actions), actions.shape[1])
        for row, slot in enumerate(slots.tolist()):
            scenario = self._at(slot)
            for c in range(int(limits[row])):
                played = self._actions(actions[row, c])
                self._observations[slot], reward, terminated, truncated, info = self._environments[slot].step(played)
                self._elapsed[slot] += 1
                earned, ended, cut = as_number(reward), as_flag(terminated), as_flag(truncated)
                if earned is None:
                    raise self._unreadable(slot, "reward", reward, "a number")
                if ended is None or cut is None:
                    name, found = ("terminated", terminated) if ended is None else ("truncated", truncated)
                    raise self._unreadable(slot, name, found, "true or false")
                # A number beyond float32 becomes infinite, which the host refuses.
                with np.errstate(over="ignore"):
                    outcome.reward[row, c] = earned
                outcome.terminated[row, c] = ended
                outcome.success[row, c] = self._succeeded(slot, ended, info)
                if ended:
                    break
                if cut and self._elapsed[slot] < self.spec.horizon:
                    raise SimulatorError(
                        f"{scenario.id}, slot {slot}: the environment cuts its episode after {self._elapsed[slot]} "
                        f"steps, below simulator.horizon {self.spec.horizon}; set simulator.horizon to at most that, "
                        "or the environment's own limit in simulator.options.environment"
                    )
        return outcome

    def observe(self, slots: Slots, out: Observation) -> None:
        """Write frames and proprioception of each slot into row `slot` of `out`.

        Raises SimulatorError where an environment sends something else than its observation space says.
        """
        for slot in slots.tolist():
            self._at(slot)
            for camera, frame in enumerate(self._frames(slot)):
                out.frames[slot, camera] = frame
            if self._proprioception is not None:
                place, size = self._proprioception
                found = value_at(self._observations[slot], place)
                vector = np.asarray(found) if isinstance(found, np.ndarray | list | tuple) else None
                if vector is None or vector.shape != (size,) or vector.dtype.kind not in "biuf":
                    raise self._unreadable(slot, f"observation {place!r}", found, f"{size} numbers")
                with np.errstate(over="ignore"):
                    out.proprioception[slot] = vector

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """What the environments draw or, where they cannot, their first image, [n, size, size, 3]."""
        frames = np.zeros((len(slots), size, size, 3), np.uint8)
        for frame, slot in zip(frames, slots.tolist(), strict=True):
            environment = self._environments[slot]
            seen = _drawn(environment) if self._draws else self._frames(slot)[0]
            frame[:] = fit_square(seen, size)
        return frames

    def close(self) -> None:
        """Close the environments."""
        for environment in (*self._environments, *([self._reader] if self._reader else ())):
            environment.close()
        self._environments, self._reader = [], None

    def _make(self) -> gymnasium.Env[Any, Any]:
        try:
            return gymnasium.make(self._id, **self._arguments)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ConfigError(
                f"simulator.name: cannot make the Gymnasium environment {self._id!r} with "
                f"{_KEY}environment {self._arguments}: {error}; where a module registers it, write "
                f"gymnasium:MODULE:{self._id.rpartition(':')[2]}"
            ) from error

    def _scenario(self, suite: str, split: Split, index: int) -> Scenario:
        seed = _seed(split, index)
        instruction = self._instruction if self._instruction is not None else self._read_instruction(seed)
        return Scenario(f"gymnasium:{self._id}", suite, self._id, split, index, instruction)

    def _read(self, seed: int) -> str:
        assert self._instruction_place is not None
        if self._reader is None:
            self._reader = self._make()
        observation, info = self._reader.reset(seed=seed)
        found = instruction_in(self._instruction_place, observation, info)
        if found is None:
            raise SimulatorError(f"{self.spec.name}: no text at {self._instruction_place!r} after reset(seed={seed})")
        return found

    def _at(self, slot: int) -> Scenario:
        return entry_of(self.spec.name, self._playing, slot)

    def _first_frame(self, environment: gymnasium.Env[Any, Any], observation: Any) -> NDArray[np.uint8]:
        """The frame that says how large all are. Raises SimulatorError for one that is no image."""
        if self._images is None:
            return _drawn(environment)
        found = value_at(observation, self._images[0])
        if not _is_frame(found):
            raise SimulatorError(
                f"gymnasium:{self._id}: observation {self._images[0]!r} of reset() is {shown(found)}, no frame "
                "[H, W, 3] uint8 as its observation space says"
            )
        return found

    def _frames(self, slot: int) -> list[NDArray[np.uint8]]:
        """What the cameras of a slot see now. Raises SimulatorError for a frame of another size or type."""
        wanted = (self.spec.height, self.spec.width, 3)
        if self._images is None:
            seen = {RENDERED: _drawn(self._environments[slot])}
        else:
            seen = {place: value_at(self._observations[slot], place) for place in self._images}
        for place, frame in seen.items():
            if not _is_frame(frame) or frame.shape != wanted:
                raise self._unreadable(slot, f"image {place!r}", frame, f"a frame uint8 {list(wanted)}")
        return list(seen.values())

    def _unreadable(self, slot: int, name: str, found: Any, wanted: str) -> SimulatorError:
        return SimulatorError(
            f"{self._at(slot).id}, slot {slot}: at control step {self._elapsed[slot]} the environment sent "
            f"{name} {shown(found)} where {wanted} belongs; mend the environment, or wrap it in one that converts it"
        )

    def _succeeded(self, slot: int, ended: bool, info: Mapping[str, Any]) -> bool:
        if self._success == ENDING:
            return ended
        for key in _SUCCESS_KEYS if self._success is None else (self._success,):
            if (found := value_at(info, key)) is not None:
                if (flag := as_flag(found)) is None:
                    raise self._unreadable(slot, f"info {key!r}", found, "true or false")
                return flag
        if self._success is not None and not ended:
            return False
        wanted = " or ".join(map(repr, _SUCCESS_KEYS)) if self._success is None else repr(self._success)
        there = ", ".join(f"{key} {shown(value)}" for key, value in info.items())
        raise SimulatorError(
            f"{self._at(slot).id}, slot {slot}: the info of control step {self._elapsed[slot]} holds no {wanted}, "
            f"only: {there or 'nothing'}; name the key that says whether the goal holds in {_KEY}success, or "
            f"{ENDING!r} where every ending is a success"
        )


def _seed(split: Split, index: int) -> int:
    return index + (SEEDS if split == "evaluation" else 0)


def _drawn(environment: gymnasium.Env[Any, Any]) -> NDArray[np.uint8]:
    frame: Any = environment.render()
    if not _is_frame(frame):
        raise SimulatorError(f"render() of {environment} gave {shown(frame)}, no frame [H, W, 3] uint8")
    return frame


def _is_frame(value: Any) -> TypeGuard[NDArray[np.uint8]]:
    return isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[2] == 3 and value.dtype == np.uint8
