"""A Gymnasium environment that a point crosses: it can be worked out by hand."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Reaching(gymnasium.Env):
    """The position moves by the action; 1 or more is the goal. The colour to go to follows from the seed."""

    metadata = {"render_modes": [], "render_fps": 5}

    def __init__(self, limit: int = 100, cameras: int = 1, vectors: int = 1, says: str = "info") -> None:
        self.limit, self.cameras, self.vectors, self.says = limit, cameras, vectors, says
        image = spaces.Box(0, 255, (4, 6, 3), np.uint8)
        held = {f"image{i}": image for i in range(cameras)} | {
            f"vector{i}": spaces.Box(-9, 9, (2,), np.float64) for i in range(vectors)
        }
        if says == "text":
            held["asked"] = spaces.Text(40, charset="abcdefghijklmnopqrstuvwxyz 0123456789")
        self.observation_space = spaces.Dict(agent=spaces.Dict(held))
        self.action_space = spaces.Box(np.array([-0.5, 0]), np.array([0.5, 2]), dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.colour = int(self.np_random.integers(200))
        self.position, self.count, self.played = 0.0, 0, np.zeros(2)
        return self.observation(), self.info(at_end=False)

    def step(self, action):
        assert self.action_space.contains(action)
        self.position += action[0]
        self.played, self.count = action, self.count + 1
        ended = self.position >= 1
        return self.observation(), float(action[1]), ended, self.count >= self.limit, self.info(at_end=ended)

    def observation(self):
        frame = np.full((4, 6, 3), self.colour + self.count, np.uint8)
        held = {f"image{i}": frame + np.uint8(i) for i in range(self.cameras)}
        held |= {f"vector{i}": np.array([self.position, i]) for i in range(self.vectors)}
        return {"agent": held | ({"asked": f"go to {self.colour}"} if self.says == "text" else {})}

    def info(self, *, at_end):
        said = {"instruction": f"go to {self.colour}"} if self.says == "info" else {}
        return said | {"success": at_end, "nested": {"reached": at_end}} | ({"late": True} if at_end else {})


gymnasium.register("Reaching-v0", entry_point=Reaching)
gymnasium.register("Drawn-v0", entry_point="reaching:Drawn")


class Drawn(gymnasium.Env):
    """No image but what it draws, and a loose action space."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.full(3, action[0], np.float32), 0.0, bool(action[0] > 1), False, {}

    def render(self):
        return np.full((8, 8, 3), 7, np.uint8)
