# torch leaves from_numpy untyped.
# pyright: reportUnknownMemberType=false
"""Plays a policy in lanes of slots and gathers a rollout for the trainer.

Shapes: T decisions per slot, B slots, C actions of a chunk, V values per decision, S privileged state, n slots of the
lanes that are served.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.cores import pinned
from treadle.data.batch import TensorBatch
from treadle.data.observation import Observation
from treadle.data.rollout import Rollout
from treadle.data.span import Span, busy_seconds
from treadle.data.step import EpisodeResult
from treadle.rollout.actor import Actor, count_rows, join_rows, place_rows
from treadle.rollout.sources import ScenarioStream
from treadle.rollout.storage import RolloutStorage
from treadle.workers.lanes import Arrival, Lanes


class Collector:
    """Collects rollouts. Episodes go on from one rollout to the next. Without partial reset, every rollout is a round
    of one episode per slot instead. Slots without an episode take no part in a forward pass.

    The lane whose observations are ready is served next; no lane waits for another. With one lane this is lockstep.

    Args:
        lanes: the episodes.
        stream: the scenarios that they play.
        actor: it decides.
        valued: the policy has a head that values what it reads.
        batch: how many ready lanes one forward pass serves at most.
        cores: the policy stays on these while it collects; empty for any.
        next_inputs: keep the observation after each decision.
    """

    def __init__(
        self,
        lanes: Lanes,
        stream: ScenarioStream,
        actor: Actor,
        *,
        valued: bool,
        batch: int = 1,
        cores: tuple[int, ...] = (),
        next_inputs: bool = False,
    ) -> None:
        self._lanes = lanes
        self._stream = stream
        self._actor = actor
        self._valued = valued
        self._batch = batch
        self._cores = cores
        self._next_inputs = next_inputs
        self._spans: list[Span] = []

    @torch.no_grad()
    def collect(self, decisions: int, version: int) -> Rollout:
        """Play `decisions` chunks in every slot. The policy has had `version` updates. A round ends earlier once all of
        its episodes have ended.

        Raises:
            TreadleError: What a worker raised, or SimulatorError where it died or took too long.
        """
        lanes, began = self._lanes, time.perf_counter()
        self._actor.policy.eval()
        lanes.resume()
        work = _Unfinished.begin(decisions, lanes)
        # Lanes that play on from the rollout before are ready already. They are served in order, so runs repeat.
        there = self._begin()
        open_lanes = len(lanes)
        with self._on_its_cores():
            while open_lanes:
                # Take the lanes that are ready; those that have had all of their decisions are finished.
                arrivals, there = (there[: self._batch], there[self._batch :]) if there else (self._ready(work), [])
                going = [a.lane for a in arrivals if a.playing and work.decided[a.lane] < decisions]
                for arrival in arrivals:
                    if arrival.lane not in going:
                        self._finish(work, arrival.lane)
                        open_lanes -= 1
                # The policy decides for the others, and they play on.
                if going:
                    self._decide(work, going)
        self._spans += work.spans
        seconds = {
            "simulate": busy_seconds(work.spans, "simulate") / lanes.crew.workers,
            "generate": busy_seconds(work.spans, "generate"),
            "collect": time.perf_counter() - began,
        }
        return work.rollout(version, seconds)

    def take_spans(self) -> list[Span]:
        """When simulator and policy were busy in the rollouts since the last call."""
        spans, self._spans = self._spans, []
        return spans

    def state_dict(self) -> dict[str, Any]:
        """Where every slot and the stream stand."""
        return self._lanes.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises ValueError for one that does not fit."""
        self._lanes.load_state_dict(state)

    def _begin(self) -> list[Arrival]:
        """Let lanes begin, unless they play on from the rollout before; returns those that play on."""
        lanes = self._lanes
        if lanes.started and self._stream.partial_reset:
            return [Arrival(lane, playing=bool(count_rows(lanes.playing(lane)))) for lane in range(len(lanes))]
        self._stream.begin_round()
        lanes.feed()
        for lane in range(len(lanes)):
            lanes.begin(lane)
        return []

    def _ready(self, work: "_Unfinished") -> list[Arrival]:
        """Wait for lanes, and keep the results of their last decision."""
        arrivals = self._lanes.ready(self._batch)
        for arrival in arrivals:
            self._settle(work, arrival)
        return arrivals

    def _settle(self, work: "_Unfinished", arrival: Arrival) -> None:
        work.spans += arrival.spans
        t, buffer = work.decided[arrival.lane] - 1, self._lanes.buffer
        if t < 0:
            return
        rows = self._lanes.rows[arrival.lane]
        for name, array in work.outcome.items():
            array[t, rows] = getattr(buffer, name)[rows]
        work.state[t, rows, 1:] = buffer.state[rows, :-1]
        work.episodes += [(t, rows.start, arrival.episodes)] if arrival.episodes else []
        if arrival.final_slots:
            # Last observations of ended episodes; on the buffer, new episodes have already followed them.
            with work.generating(arrival.lane):
                slots = np.array(arrival.final_slots, np.intp)
                seen = buffer.final.take(slots)
                inputs = self._prepare(seen, work.scenarios[t, slots])
                work.final_states[t, slots] = torch.from_numpy(seen.state)
                work.final_values[t, slots] = self._first_value(inputs)
                if self._next_inputs and inputs is not None:
                    work.storage.put_batch("next_inputs", t, slots, inputs)

    def _decide(self, work: "_Unfinished", lanes: Sequence[int]) -> None:
        """Decide for lanes by one forward pass, and let each play its decision."""
        parts = [self._lanes.playing(lane) for lane in lanes]
        with work.generating(*lanes):
            decided = self._actor.decide(self._lanes, join_rows(parts))
            decision = decided.decision
            kept = {"choices": decision.choice, "log_probs": decision.log_probs}
            if self._valued:
                assert decision.values is not None
                kept["values"] = decision.values
            for lane, (rows, place) in zip(lanes, place_rows(parts), strict=True):
                # Store everything before the lane plays: then the simulator writes on the buffer again. If it is a
                # thread, every call here that releases the interpreter's lock would also wait for it.
                t = work.decided[lane]
                work.scenarios[t, rows] = self._lanes.scenarios[rows]
                work.state[t, rows, 0] = decided.seen.state[place]
                inputs = decided.inputs if len(parts) == 1 else decided.inputs.take(place)
                work.storage.put_batch("inputs", t, rows, inputs)
                self._follow(work, lane, inputs)
                for name, tensor in kept.items():
                    work.storage.put(name, t, rows, tensor[place])
                work.decided[lane] += 1
                self._lanes.buffer.actions[rows] = decided.actions[place]
                self._lanes.play(lane)

    def _finish(self, work: "_Unfinished", lane: int) -> None:
        """Keep what is known of the observation after the last decision, in slots whose episode goes on."""
        rows = self._lanes.playing(lane)
        if not count_rows(rows):
            return
        with work.generating(lane):
            seen = self._lanes.buffer.observation.take(rows)
            inputs = self._prepare(seen, self._lanes.scenarios[rows])
            work.next_states[rows] = torch.from_numpy(seen.state)
            work.next_values[rows] = self._first_value(inputs)
            if inputs is not None:
                self._follow(work, lane, inputs)

    def _follow(self, work: "_Unfinished", lane: int, inputs: TensorBatch) -> None:
        """Keep a lane's inputs [n] as those after its previous decision, in slots whose episode goes on."""
        t = work.decided[lane] - 1
        if self._next_inputs and t >= 0:
            rows = np.arange(len(work.scenarios[0]))[self._lanes.playing(lane)]
            goes_on = ~(work.outcome["terminated"] | work.outcome["truncated"])[t, rows].any(-1)
            goes_on &= work.outcome["valid"][t, rows].any(-1)
            if goes_on.any():
                work.storage.put_batch("next_inputs", t, rows[goes_on], inputs.take(torch.from_numpy(goes_on)))

    def _prepare(self, seen: Observation, scenarios: NDArray[np.object_]) -> TensorBatch | None:
        """Inputs of observations that need no decision; None if nobody reads them."""
        wanted = self._next_inputs or self._valued
        return self._actor.prepare(seen, scenarios) if wanted else None

    def _first_value(self, inputs: TensorBatch | None) -> Tensor | float:
        """[n]: the head's value before the first action; 0 without one."""
        if not self._valued:
            return 0.0
        assert inputs is not None
        return self._actor.policy.values(inputs)[:, 0].cpu()

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
class _Unfinished:
    """A rollout while it is played; lanes are at different decisions."""

    decided: list[int]
    """How many decisions each lane has had."""
    storage: RolloutStorage
    outcome: dict[str, NDArray[Any]]
    """[T, B, C] by name."""
    state: NDArray[np.float32]
    """[T, B, C, S], before each action."""
    scenarios: NDArray[np.object_]
    final_values: Tensor
    next_values: Tensor
    final_states: Tensor
    next_states: Tensor
    episodes: list[tuple[int, int, list[EpisodeResult]]]
    """(decision, first slot of the lane, episodes that ended there)."""
    spans: list[Span]

    @classmethod
    def begin(cls, decisions: int, lanes: Lanes) -> "_Unfinished":
        buffer = lanes.buffer
        slots, chunk = buffer.reward.shape
        names = ("reward", "terminated", "truncated", "success", "valid")
        return cls(
            decided=[0] * len(lanes),
            storage=RolloutStorage(decisions, slots),
            outcome={name: np.zeros((decisions, slots, chunk), getattr(buffer, name).dtype) for name in names},
            state=np.zeros((decisions, *buffer.state.shape), np.float32),
            scenarios=np.full((decisions, slots), None, np.object_),
            final_values=torch.zeros(decisions, slots),
            next_values=torch.zeros(slots),
            final_states=torch.zeros(decisions, slots, buffer.state.shape[-1]),
            next_states=torch.zeros(slots, buffer.state.shape[-1]),
            episodes=[],
            spans=[],
        )

    @contextmanager
    def generating(self, *lanes: int) -> Generator[None, None, None]:
        began = time.perf_counter()
        yield
        self.spans.append(Span("generate", 0, lanes, began, time.perf_counter()))

    def rollout(self, version: int, seconds: dict[str, float]) -> Rollout:
        decisions, storage = max(self.decided), self.storage
        valued = storage.has("values")
        self.episodes.sort(key=lambda ended: ended[:2])
        return Rollout(
            inputs=storage.batch("inputs", decisions),
            **{name: storage.get(name, decisions) for name in ("choices", "log_probs")},
            values=storage.get("values", decisions) if valued else None,
            state=torch.from_numpy(self.state[:decisions]),
            **{name: torch.from_numpy(array[:decisions]) for name, array in self.outcome.items()},
            final_values=self.final_values[:decisions] if valued else None,
            next_values=self.next_values if valued else None,
            final_states=self.final_states[:decisions],
            next_states=self.next_states,
            versions=torch.full(self.scenarios[:decisions].shape, version),
            scenarios=self.scenarios[:decisions],
            episodes=[result for _, _, ended in self.episodes for result in ended],
            seconds=seconds,
            next_inputs=storage.batch("next_inputs", decisions) if storage.has("next_inputs") else None,
        )
