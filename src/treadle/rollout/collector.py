# torch leaves from_numpy untyped.
# pyright: reportUnknownMemberType=false
"""Plays a policy against lanes of slots and gathers what the trainer needs.

Shapes: T decisions per slot, B slots, C actions of a chunk, A action dimensions, K = C * A tokens, n slots of the lanes
that are served.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.cores import pinned
from treadle.data.observation import Observation
from treadle.data.rollout import Rollout
from treadle.data.span import Span, busy_seconds
from treadle.data.step import EpisodeResult
from treadle.policies.critic import Critic
from treadle.policies.protocol import Inputs, Policy, Sampling
from treadle.rollout.lanes import Arrival, Lanes, Rows
from treadle.rollout.storage import RolloutStorage


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
    """Collects rollouts; episodes go on from one rollout to the next, or (where the lanes' streams have no partial
    reset) every rollout is a round of one episode per slot. Slots without an episode take no part in a forward pass.

    Whichever lane's observations are ready is served next; no lane waits for another. With one lane this is lockstep.

    Args:
        lanes: the episodes.
        policy: what acts.
        sampling: how it acts.
        critic: what values observations.
        encode: store vision features in place of frames; for frozen towers.
        batch: ready lanes that are served by one forward pass at most.
        cores: the policy stays on these while it collects; none for any.
    """

    def __init__(
        self,
        lanes: Lanes,
        policy: Policy,
        sampling: Sampling,
        critic: Critic,
        *,
        encode: bool,
        batch: int = 1,
        cores: tuple[int, ...] = (),
    ) -> None:
        self._lanes = lanes
        self._policy = policy
        self._sampling = sampling
        self._critic = critic
        self._encode = encode
        self._batch = batch
        self._cores = cores
        self._device = policy.device
        self._partial_reset = lanes.plan.stream.get("partial_reset", True)
        self._held: list[Arrival] = []
        self._spans: list[Span] = []

    @torch.no_grad()
    def collect(self, decisions: int, version: int) -> Rollout:
        """Play `decisions` chunks in every slot with the policy as it is, which has had `version` updates; a round ends
        earlier where all of its episodes have.

        Raises:
            TreadleError: What a worker raised, or SimulatorError where it died or took too long.
        """
        self._policy.eval()
        began = time.perf_counter()
        work = _Rollout.begin(decisions, self._lanes)
        if not self._lanes.started or not self._partial_reset:
            self._held = []
            self._lanes.start()
        with self._on_its_cores():
            open_lanes = len(self._lanes)
            finished: list[Arrival] = []
            while open_lanes:
                going: list[int] = []
                for arrival in self._arrivals():
                    self._settle(work, arrival)
                    if arrival.playing and work.decided[arrival.lane] < decisions:
                        going.append(arrival.lane)
                    else:
                        self._finish(work, arrival.lane)
                        finished.append(Arrival(arrival.lane, playing=arrival.playing))
                        open_lanes -= 1
                if going:
                    self._decide(work, going)
        # In order of lane, so that what a rollout holds does not depend on who came last in the one before.
        self._held = sorted(finished, key=lambda arrival: arrival.lane)
        values = self._state_values(work) if self._critic.reads_state else None
        self._spans += work.spans
        seconds = {
            "simulate": busy_seconds(work.spans, "simulate") / self._lanes.workers,
            "generate": busy_seconds(work.spans, "generate"),
            "collect": time.perf_counter() - began,
        }
        return work.rollout(values, version, seconds)

    def take_spans(self) -> list[Span]:
        """When simulator and policy were busy in the rollouts since the last call."""
        spans, self._spans = self._spans, []
        return spans

    def state_dict(self) -> dict[str, Any]:
        """Where every slot and its stream stand."""
        return self._lanes.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; episodes under way are played again up to where they were."""
        self._held = []
        self._lanes.load_state_dict(state)

    def _arrivals(self) -> list[Arrival]:
        """The lanes to be served next."""
        if not self._held:
            return self._lanes.ready(self._batch)
        arrivals, self._held = self._held[: self._batch], self._held[self._batch :]
        return arrivals

    def _settle(self, work: "_Rollout", arrival: Arrival) -> None:
        """Keep what came of a lane's last decision."""
        work.spans += arrival.spans
        t, board = work.decided[arrival.lane] - 1, self._lanes.board
        if t < 0:
            return
        rows = self._lanes.rows[arrival.lane]
        for name, array in work.outcome.items():
            array[t, rows] = getattr(board, name)[rows]
        work.state[t, rows, 1:] = board.state[rows, :-1]
        work.episodes += [(t, rows.start, arrival.episodes)] if arrival.episodes else []
        if arrival.final_slots:
            with work.generating(arrival.lane):
                seen = board.final.take(np.array(arrival.final_slots, np.intp))
                seen.instructions = arrival.final_instructions
                work.final_values[t, arrival.final_slots] = self._first_value(seen)

    def _decide(self, work: "_Rollout", lanes: Sequence[int]) -> None:
        """Serve lanes by one forward pass, and let each play what was decided."""
        board, parts = self._lanes.board, [self._lanes.playing(lane) for lane in lanes]
        together = _join(parts)
        with work.generating(*lanes):
            seen = self._seen(together)
            inputs = self._prepare(seen)
            noise = torch.from_numpy(board.noise[together]).to(self._device)
            decision = self._policy.act(inputs, self._sampling, noise)
            actions = decision.actions.cpu().numpy()
            kept = {"tokens": decision.tokens, "log_probs": decision.log_probs}
            if not self._critic.reads_state:
                assert decision.values is not None
                kept["values"] = decision.values
            pieces = [(work.decided[lane], *piece) for lane, piece in zip(lanes, _pieces(parts), strict=True)]
            for lane, (t, rows, piece) in zip(lanes, pieces, strict=True):
                # All before it plays: the simulator writes on the board again from there on, and where it is a thread,
                # every call that lets go of the interpreter's lock would wait for it.
                work.scenarios[t, rows] = self._lanes.scenarios[rows]
                work.state[t, rows, 0] = seen.state[piece]
                work.storage.put_inputs(t, rows, inputs if len(pieces) == 1 else inputs.take(piece))
                for name, tensor in kept.items():
                    work.storage.put(name, t, rows, tensor[piece])
                work.decided[lane] += 1
                board.actions[rows] = actions[piece]
                self._lanes.play(lane)

    def _finish(self, work: "_Rollout", lane: int) -> None:
        """Value where a lane's rollout ends, in slots whose episode goes on."""
        rows = self._lanes.playing(lane)
        if not _count(rows):
            return
        with work.generating(lane):
            work.next_values[rows] = self._first_value(self._seen(rows))

    def _state_values(self, work: "_Rollout") -> Tensor:
        """[T, B, V]: the values of a critic of privileged states, of all decisions at once."""
        with work.generating():
            states = torch.from_numpy(work.state[: max(work.decided)])
            values = self._critic(None, states.flatten(0, 1).to(self._device)).cpu()
            return values.reshape(*states.shape[:2], -1)

    def _seen(self, rows: Rows) -> Observation:
        """The observations of some slots: where the simulator wrote them, if they are neighbours."""
        seen = self._lanes.board.observation
        return Observation(
            seen.frames[rows],
            seen.proprioception[rows],
            seen.state[rows],
            [scenario.instruction for scenario in self._lanes.scenarios[rows]],
        )

    def _prepare(self, observation: Observation) -> Inputs:
        inputs = self._policy.prepare(observation.frames, observation.instructions, observation.proprioception)
        return self._policy.encode(inputs) if self._encode else inputs

    def _first_value(self, observation: Observation) -> Tensor:
        """[n]: the value before the first action."""
        state = torch.from_numpy(observation.state[:, None].copy()).to(self._device)
        inputs = None if self._critic.reads_state else self._prepare(observation)
        return self._critic(inputs, state)[:, 0].cpu()

    @contextmanager
    def _on_its_cores(self) -> Generator[None, None, None]:
        threads = torch.get_num_threads()
        if self._cores:
            torch.set_num_threads(len(self._cores))
        try:
            with pinned(self._cores):
                yield
        finally:
            if self._cores:
                torch.set_num_threads(threads)


@dataclass(slots=True)
class _Rollout:
    """A rollout while it is being played; lanes are at different decisions."""

    decided: list[int]
    """Decisions that each lane has had."""
    storage: RolloutStorage
    outcome: dict[str, NDArray[Any]]
    """[T, B, C] by name."""
    state: NDArray[np.float32]
    """[T, B, C, S], before each action."""
    scenarios: NDArray[np.object_]
    final_values: Tensor
    next_values: Tensor
    episodes: list[tuple[int, int, list[EpisodeResult]]]
    """(decision, first slot, those that ended in it)."""
    spans: list[Span]

    @classmethod
    def begin(cls, decisions: int, lanes: Lanes) -> "_Rollout":
        board = lanes.board
        slots, chunk = board.reward.shape
        names = ("reward", "terminated", "truncated", "valid")
        return cls(
            decided=[0] * len(lanes),
            storage=RolloutStorage(decisions, slots),
            outcome={name: np.zeros((decisions, slots, chunk), getattr(board, name).dtype) for name in names},
            state=np.zeros((decisions, *board.state.shape), np.float32),
            scenarios=np.full((decisions, slots), None, np.object_),
            final_values=torch.zeros(decisions, slots),
            next_values=torch.zeros(slots),
            episodes=[],
            spans=[],
        )

    @contextmanager
    def generating(self, *lanes: int) -> Generator[None, None, None]:
        began = time.perf_counter()
        yield
        self.spans.append(Span("generate", 0, lanes, began, time.perf_counter()))

    def rollout(self, values: Tensor | None, version: int, seconds: dict[str, float]) -> Rollout:
        decisions = max(self.decided)
        self.episodes.sort(key=lambda ended: ended[:2])
        return Rollout(
            inputs=self.storage.inputs(decisions),
            **{name: self.storage.get(name, decisions) for name in ("tokens", "log_probs")},
            values=self.storage.get("values", decisions) if values is None else values,
            state=torch.from_numpy(self.state[:decisions]),
            **{name: torch.from_numpy(array[:decisions]) for name, array in self.outcome.items()},
            final_values=self.final_values[:decisions],
            next_values=self.next_values,
            versions=torch.full(self.scenarios[:decisions].shape, version),
            scenarios=self.scenarios[:decisions],
            episodes=[result for _, _, ended in self.episodes for result in ended],
            seconds=seconds,
        )


def _join(parts: Sequence[Rows]) -> Rows:
    """All parts as one; a slice where they are neighbours in order."""
    slices = [part for part in parts if isinstance(part, slice)]
    if len(slices) == len(parts) and all(one.stop == other.start for one, other in pairwise(slices)):
        return slice(slices[0].start, slices[-1].stop)
    each: list[NDArray[np.intp]] = [np.arange(p.start, p.stop) if isinstance(p, slice) else p for p in parts]
    return np.concatenate(each)


def _count(rows: Rows) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _pieces(parts: Sequence[Rows]) -> list[tuple[Rows, slice]]:
    """Each part with its place among the gathered rows."""
    ends = accumulate(map(_count, parts))
    return [(part, slice(end - _count(part), end)) for part, end in zip(parts, ends, strict=True)]
