"""A simulator and a policy whose every number can be worked out by hand.

Shapes: n slots addressed, C actions of a chunk, A action dimensions, K = C * A tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.policies.protocol import Decision, Inputs, Sampling
from treadle.simulators.protocol import SimulatorSpec, Slots


def scenario(index: int, suite: str = "train", split: Split = "train") -> Scenario:
    return Scenario("fake", suite, "task", split, index, f"do {index}")


@dataclass(frozen=True)
class Script:
    """How a scenario goes: the control step (from 1) that ends it, and those at which its goal holds."""

    ends: int | None = None
    succeeds: tuple[int, ...] = ()


class FakeSimulator:
    """Step k of an episode earns k plus the action's first number. Proprioception and state are (index, steps)."""

    def __init__(self, slots: int, scripts: Mapping[int, Script] | None = None, horizon: int = 10) -> None:
        self.slots = slots
        self.spec = SimulatorSpec("fake", ("front",), 4, 4, 2, 2, 2, horizon, 20.0)
        self.scripts = scripts or {}
        self.limits: list[list[int]] = []
        self.now: list[Scenario | None] = [None] * slots
        self.steps = np.zeros(slots, np.int64)
        self.over = np.zeros(slots, np.bool_)
        self.closed = False

    def suites(self) -> tuple[str, ...]:
        return ("train", "odd", "odd/a", "odd/b")

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        if suite == "odd":
            return [scenario(i // 2, f"odd/{'ab'[i % 2]}", split) for i in range(10)]
        return [scenario(i, suite, split) for i in range(20)]

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        return [scenario.instruction, *(f"or {scenario.index}.{i}" for i in range(5))]

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        assert len(slots) == len(scenarios) > 0
        for slot, what in zip(slots.tolist(), scenarios, strict=True):
            self.now[slot] = what
        self.steps[slots] = 0
        self.over[slots] = False

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        assert len(slots) == len(actions) == len(limits) > 0
        self.limits.append(limits.tolist())
        out = Outcome.empty(*actions.shape[:2], self.spec.state_dim)
        for row, slot in enumerate(slots.tolist()):
            what = self.now[slot]
            assert what is not None
            assert not self.over[slot]
            script = self.scripts.get(what.index, Script())
            for c in range(int(limits[row])):
                self.steps[slot] += 1
                k = int(self.steps[slot])
                out.reward[row, c] = k + actions[row, c, 0]
                out.success[row, c] = k in script.succeeds
                out.state[row, c] = what.index, k
                if k == script.ends:
                    out.terminated[row, c] = self.over[slot] = True
                    break
        return out

    def observe(self, slots: Slots, out: Observation) -> None:
        for slot in slots.tolist():
            what = self.now[slot]
            assert what is not None
            out.frames[slot] = what.index
            out.proprioception[slot] = out.state[slot] = (what.index, self.steps[slot])
            out.instructions[slot] = what.instruction

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        return np.stack([np.full((size, size, 3), self.steps[slot], np.uint8) for slot in slots])

    def close(self) -> None:
        self.closed = True


@dataclass
class FakePolicy:
    """Actions and tokens are the noise; a value is 100 * index + steps, plus c for action c of the chunk."""

    chunk: int = 2
    action_dim: int = 2
    value_outputs: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    frames: list[Tensor] = field(default_factory=list)
    instructions: list[list[str]] = field(default_factory=list)
    valued: list[int] = field(default_factory=list)
    """Rows of each call of `values`."""

    def prepare(
        self, frames: NDArray[np.uint8], instructions: list[str], proprioception: NDArray[np.float32]
    ) -> Inputs:
        self.frames.append(torch.from_numpy(frames.copy()))
        self.instructions.append(list(instructions))
        ids = torch.zeros(len(frames), 1, dtype=torch.long)
        return Inputs(ids, ids == 0, frames=self.frames[-1], proprioception=torch.from_numpy(proprioception.copy()))

    def encode(self, inputs: Inputs) -> Inputs:
        assert inputs.frames is not None
        features = inputs.frames.float().flatten(1)[:, None]
        return Inputs(inputs.input_ids, inputs.attention_mask, None, features, inputs.proprioception)

    def act(self, inputs: Inputs, sampling: Sampling, noise: Tensor | None = None) -> Decision:
        shape = (len(inputs), self.chunk * self.action_dim)
        noise = torch.zeros(shape) if noise is None else noise
        assert noise.shape == shape
        actions = noise.reshape(len(inputs), self.chunk, self.action_dim)
        return Decision(actions, (noise * 256).long(), -noise, self._values(inputs))

    def values(self, inputs: Inputs) -> Tensor:
        self.valued.append(len(inputs))
        return self._values(inputs)

    def _values(self, inputs: Inputs) -> Tensor:
        assert inputs.proprioception is not None
        return state_values(inputs.proprioception[:, None]) + torch.arange(self.value_outputs)

    def eval(self) -> "FakePolicy":
        return self


def state_values(states: Tensor) -> Tensor:
    """[.., 1] values 100 * index + steps of the first of states [.., C, S]."""
    return 100 * states[..., :1, 0] + states[..., :1, 1]


class StateCritic:
    """The fake policy's values, read from the privileged state."""

    reads_state = True

    def __call__(self, inputs: Inputs | None, states: Tensor) -> Tensor:
        assert inputs is None
        return state_values(states)
