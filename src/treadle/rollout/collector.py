# torch leaves from_numpy untyped.
# pyright: reportUnknownMemberType=false
"""Plays a policy against a host and gathers what the trainer needs.

Shapes: T decisions per slot, B slots, C actions of a chunk, A action dimensions, K = C * A tokens.
"""

import math
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.data.observation import Observation
from treadle.data.rollout import Rollout
from treadle.data.step import EpisodeResult, Step
from treadle.policies.critic import Critic
from treadle.policies.protocol import Decision, Inputs, Policy, Sampling
from treadle.rollout.stream import ScenarioStream
from treadle.simulators.host import Host


class Stopwatch:
    """Adds up wall seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Generator[None, None, None]:
        """Add the time of the `with` block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Collector:
    """Collects rollouts; episodes go on from one rollout to the next, or (where the stream has no partial reset) every
    rollout is a round of one episode per slot.

    Args:
        host: the episodes; its source of scenarios is `stream`.
        stream: where scenarios and their noise come from.
        policy: what acts.
        sampling: how it acts.
        critic: what values observations.
        encode: store vision features in place of frames; for frozen towers.
    """

    def __init__(
        self,
        host: Host,
        stream: ScenarioStream,
        policy: Policy,
        sampling: Sampling,
        critic: Critic,
        *,
        encode: bool,
    ) -> None:
        self._host = host
        self._stream = stream
        self._policy = policy
        self._sampling = sampling
        self._critic = critic
        self._encode = encode
        self._device = policy.device
        self._noise: dict[int, tuple[int, NDArray[np.float32]]] = {}
        self._observation: Observation | None = None

    @torch.no_grad()
    def collect(self, decisions: int, version: int) -> Rollout:
        """Play `decisions` chunks in every slot with the policy as it is, which has had `version` updates; a round ends
        earlier where all of its episodes have.
        """
        watch = Stopwatch()
        self._policy.eval()
        if not self._stream.partial_reset:
            self._stream.begin_round()
        if self._observation is None or not self._stream.partial_reset:
            with watch("simulate"):
                self._observation = self._host.start()
        inputs: list[Inputs] = []
        states: list[NDArray[np.float32]] = []
        decided: list[Decision] = []
        indices: list[list[int]] = []
        steps: list[Step] = []
        episodes: list[EpisodeResult] = []
        final_values = torch.zeros(decisions, self._host.simulator.slots)
        for t in range(decisions):
            if not len(self._host.playing):
                break
            with watch("generate"):
                states.append(self._observation.state.copy())
                prepared = self._prepare(self._observation)
                decision = self._policy.act(prepared, self._sampling, self._scenario_noise())
                inputs.append(prepared)
                decided.append(decision)
            indices.append([-1 if scenario is None else scenario.index for scenario in self._host.scenarios])
            with watch("simulate"):
                step = self._host.step(decision.actions.cpu().numpy())
            steps.append(step)
            episodes += step.episodes
            if len(step.final_slots):
                with watch("generate"):
                    final_values[t, step.final_slots] = self._first_value(step.final)
        with watch("generate"):
            next_values = self._first_value(self._observation)
            before = np.concatenate([np.stack(states)[:, :, None], np.stack([step.state[:, :-1] for step in steps])], 2)
            state = torch.from_numpy(before)
            values = self._values(decided, state)
        return Rollout(
            inputs=inputs,
            tokens=torch.stack([decision.tokens for decision in decided]).cpu(),
            log_probs=torch.stack([decision.log_probs for decision in decided]).cpu(),
            values=values.cpu(),
            state=state,
            reward=_stack(steps, "reward"),
            terminated=_stack(steps, "terminated"),
            truncated=_stack(steps, "truncated"),
            valid=_stack(steps, "valid"),
            final_values=final_values[: len(steps)],
            next_values=next_values,
            versions=torch.full((len(steps), self._host.simulator.slots), version),
            scenario_index=np.array(indices, np.int64),
            episodes=episodes,
            seconds=watch.seconds,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where every slot and its stream stand."""
        return {"episodes": self._stream.episodes.tolist(), "host": self._host.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; episodes under way are played again up to where they were."""
        self._stream.episodes[:] = state["episodes"]
        self._observation = self._host.load_state_dict(state["host"])

    def _prepare(self, observation: Observation) -> Inputs:
        inputs = self._policy.prepare(observation.frames, observation.instructions, observation.proprioception)
        return self._policy.encode(inputs) if self._encode else inputs

    def _scenario_noise(self) -> Tensor:
        """[B, K]: the noise of each slot's episode at its present decision."""
        chunk, tokens = self._policy.chunk, self._policy.chunk * self._policy.action_dim
        noise = np.zeros((self._host.simulator.slots, tokens), np.float32)
        elapsed = self._host.elapsed
        for slot in self._host.playing.tolist():
            episode = int(self._stream.episodes[slot])
            if slot not in self._noise or self._noise[slot][0] != episode:
                fresh = self._stream.noise(slot, math.ceil(self._host.horizon / chunk), tokens)
                self._noise[slot] = (episode, fresh)
            noise[slot] = self._noise[slot][1][elapsed[slot] // chunk]
        return torch.from_numpy(noise).to(self._device)

    def _values(self, decided: list[Decision], state: Tensor) -> Tensor:
        """[T, B, V]: the critic's values of what was decided on; `state` is [T, B, C, S]."""
        if self._critic.reads_state:
            return self._critic(None, state.flatten(0, 1).to(self._device)).unflatten(0, state.shape[:2])
        values = [decision.values for decision in decided if decision.values is not None]
        return torch.stack(values)

    def _first_value(self, observation: Observation) -> Tensor:
        """[rows]: the value before the first action."""
        state = torch.from_numpy(observation.state[:, None].copy()).to(self._device)
        inputs = None if self._critic.reads_state else self._prepare(observation)
        return self._critic(inputs, state)[:, 0].cpu()


def _stack(steps: list[Step], name: str) -> Tensor:
    return torch.from_numpy(np.stack([getattr(step, name) for step in steps]))
