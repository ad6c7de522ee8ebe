"""Tabletop as a Gymnasium environment, `treadle/Tabletop-v0`."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from treadle.data.scenario import Scenario, Split
from treadle.simulators.checks import entry_of
from treadle.simulators.host import Host
from treadle.simulators.tabletop.simulator import LENGTH, Tabletop
from treadle.simulators.tabletop.task import PROPRIOCEPTION_DIM, TRANSLATION_LIMIT, YAW_LIMIT

ID = "treadle/Tabletop-v0"
_HIGHEST = np.array([TRANSLATION_LIMIT] * 3 + [YAW_LIMIT] * 3 + [1], np.float32)
_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ,"


def register() -> None:
    """Make `gymnasium.make` and `gymnasium.make_vec` know the environment."""
    gymnasium.register(ID, entry_point="treadle.simulators.tabletop.gymnasium_env:TabletopEnv")


class TabletopEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One slot of `Tabletop`. `reset(options={"index": i})` plays scenario i of the suite; else one is drawn.

    Observations: image [H, W, 3] uint8, proprioception [7], instruction text. Actions [7] as `Tabletop` takes them.
    """

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
        self.observation_space = spaces.Dict(
            image=spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
            proprioception=spaces.Box(-2, 2, (PROPRIOCEPTION_DIM,), np.float32),
            instruction=spaces.Text(80, charset=_ALPHABET),
        )
        self.action_space = spaces.Box(np.append(-_HIGHEST[:6], np.float32(0)), _HIGHEST)
        self._simulator = Tabletop(1, horizon=horizon, image_size=image_size, threads=1)
        self._scenarios = self._simulator.scenarios(suite, split)
        self._next: Iterator[Scenario] = iter(())
        # To keep an episode's last observation, the host writes it where observations are read here.
        self._host = Host(self._simulator, lambda _: next(self._next, None), horizon, keep_final="ended")
        self._instruction = ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a scenario; `info["scenario"]` is its id."""
        super().reset(seed=seed)
        index = (options or {}).get("index")
        scenario = self._scenarios[int(self.np_random.integers(LENGTH)) if index is None else index]
        self._next, self._instruction = iter([scenario]), scenario.instruction
        self._host.start()
        return self._observation(), {"scenario": scenario.id}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Play one control step. Raises SimulatorError for an action that is not finite, and after an episode's end."""
        entry_of(self._simulator.spec.name, self._host.scenarios, 0)
        step = self._host.step(np.asarray(action, np.float32).reshape(1, 1, 7))
        ended, late = bool(step.terminated[0, 0]), bool(step.truncated[0, 0])
        return self._observation(), float(step.reward[0, 0]), ended, late, {"success": bool(step.success[0, 0])}

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A soft frame, 256 px."""
        return self._simulator.render(np.zeros(1, np.intp), 256)[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Release the simulator."""
        self._simulator.close()

    def _observation(self) -> dict[str, Any]:
        return {
            "image": self._host.observation.frames[0, 0].copy(),
            "proprioception": self._host.observation.proprioception[0].copy(),
            "instruction": self._instruction,
        }
