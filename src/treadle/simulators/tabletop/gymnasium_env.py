"""Tabletop as a Gymnasium environment, `treadle/Tabletop-v0`, single and vectorised."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.simulators.tabletop.scenarios import LENGTH
from treadle.simulators.tabletop.simulator import TRANSLATION_LIMIT, YAW_LIMIT, Tabletop

ID = "treadle/Tabletop-v0"
_LIMIT = [TRANSLATION_LIMIT] * 3 + [YAW_LIMIT] * 3
_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ,"


def register() -> None:
    """Make `gymnasium.make` and `gymnasium.make_vec` know the environment."""
    module = "treadle.simulators.tabletop.gymnasium_env"
    gymnasium.register(
        ID,
        entry_point=f"{module}:TabletopEnv",
        vector_entry_point=f"{module}:TabletopVectorEnv",
        max_episode_steps=None,
    )


def observation_space(image_size: int) -> spaces.Dict:
    """Image [H, W, 3] uint8, proprioception [7], instruction text."""
    return spaces.Dict(
        image=spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
        proprioception=spaces.Box(-2, 2, (7,), np.float32),
        instruction=spaces.Text(80, charset=_ALPHABET),
    )


def action_space() -> spaces.Box[np.float32]:
    """dx, dy, dz, droll, dpitch, dyaw, gripper, as `Tabletop` takes them."""
    low, high = [-value for value in _LIMIT], list(_LIMIT)
    return spaces.Box(np.array([*low, 0], np.float32), np.array([*high, 1], np.float32))


class TabletopEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One slot of `Tabletop`. `reset(options={"index": i})` plays scenario i of the suite; else one is drawn."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        suite: str = "train",
        split: Split = "train",
        horizon: int = 80,
        image_size: int = 64,
        render_mode: str | None = None,
    ) -> None:
        """`horizon` control steps make a truncation."""
        self.render_mode = render_mode
        self.observation_space = observation_space(image_size)
        self.action_space = action_space()
        self._simulator = Tabletop(1, horizon=horizon, image_size=image_size, threads=1)
        self._scenarios = self._simulator.scenarios(suite, split)
        self._observation = _buffer(self._simulator)
        self._slot = np.zeros(1, np.intp)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a scenario; `info["scenario"]` is its id."""
        super().reset(seed=seed)
        index = options["index"] if options and "index" in options else int(self.np_random.integers(LENGTH))
        scenario = self._scenarios[index]
        self._simulator.reset(self._slot, [scenario])
        return self._observe(), {"scenario": scenario.id}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Play one control step."""
        outcome = self._simulator.step(self._slot, np.asarray(action, np.float32).reshape(1, 1, 7), np.ones(1, np.intp))
        success = bool(outcome.success[0, 0])
        late = int(self._simulator.records.step[0]) >= self._simulator.spec.horizon
        return self._observe(), float(outcome.reward[0, 0]), success, late and not success, {"success": success}

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A soft frame, 256 px."""
        return self._simulator.render(self._slot, 256)[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Release the simulator."""
        self._simulator.close()

    def _observe(self) -> dict[str, Any]:
        out = self._observation
        self._simulator.observe(self._slot, out)
        return {
            "image": out.frames[0, 0].copy(),
            "proprioception": out.proprioception[0].copy(),
            "instruction": out.instructions[0],
        }


class TabletopVectorEnv(VectorEnv[dict[str, Any], NDArray[np.float32], NDArray[Any]]):
    """All slots of one `Tabletop`; an episode that ended starts its next scenario at the next step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        suite: str = "train",
        split: Split = "train",
        horizon: int = 80,
        image_size: int = 64,
        threads: int = 0,
        render_mode: str | None = None,
    ) -> None:
        """As `TabletopEnv`, with `threads` of the simulator."""
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = observation_space(image_size)
        self.single_action_space = action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._simulator = Tabletop(num_envs, horizon=horizon, image_size=image_size, threads=threads)
        self._scenarios = self._simulator.scenarios(suite, split)
        self._observation = _buffer(self._simulator)
        self._slots = np.arange(num_envs)
        self._ended = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a drawn scenario in every slot."""
        if seed is not None:
            self._np_random = np.random.default_rng([s or 0 for s in seed] if isinstance(seed, list) else seed)
        self._ended[:] = False
        self._start(self._slots)
        return self._observe(), {}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[dict[str, Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Play one control step in every slot, but start the next scenario where the episode had ended."""
        live, ended = self._slots[~self._ended], self._slots[self._ended]
        reward, success = np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_)
        if len(live):
            played = np.asarray(actions, np.float32)[live, None]
            outcome = self._simulator.step(live, played, np.ones(len(live), np.intp))
            reward[live], success[live] = outcome.reward[:, 0], outcome.success[:, 0]
        if len(ended):
            self._start(ended)
        late = (self._simulator.records.step >= self._simulator.spec.horizon) & ~success
        self._ended = success | late
        return self._observe(), reward, success.copy(), late, {"success": success}

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Soft frames, 256 px."""
        return tuple(self._simulator.render(self._slots, 256)) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        """Release the simulator."""
        self._simulator.close()

    def _start(self, slots: NDArray[np.intp]) -> None:
        indices = self.np_random.integers(LENGTH, size=len(slots)).tolist()
        scenarios: Sequence[Scenario] = [self._scenarios[index] for index in indices]
        self._simulator.reset(slots, scenarios)

    def _observe(self) -> dict[str, Any]:
        out = self._observation
        self._simulator.observe(self._slots, out)
        return {
            "image": out.frames[:, 0].copy(),
            "proprioception": out.proprioception.copy(),
            "instruction": tuple(out.instructions),
        }


def _buffer(simulator: Tabletop) -> Observation:
    spec = simulator.spec
    return Observation.empty(simulator.slots, 1, spec.height, spec.width, spec.proprioception_dim, spec.state_dim)
