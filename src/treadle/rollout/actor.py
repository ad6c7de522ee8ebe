"""The generate role: observations of lanes go to the policy, and its decisions go back.

Shapes: n slots that are served, C actions of a chunk, A action dimensions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from treadle.data.batch import TensorBatch
from treadle.data.observation import Observation
from treadle.data.scenario import Scenario
from treadle.policies.protocol import Decision, Policy, Sampling
from treadle.workers.lanes import Lanes, Rows


@dataclass(slots=True)
class Decided:
    """What a policy decided for some slots by one forward pass."""

    seen: Observation
    inputs: TensorBatch
    decision: Decision
    actions: NDArray[np.float32]
    """[n, C, A]"""


class Actor:
    """Lets a policy decide for the slots of lanes.

    Args:
        policy: it decides.
        sampling: how actions are drawn.
        encode: compute frozen vision once, and keep its features in place of the frames.
    """

    def __init__(self, policy: Policy, sampling: Sampling, *, encode: bool = False) -> None:
        self.policy = policy
        self._sampling = sampling
        self._encode = encode

    def prepare(self, seen: Observation, scenarios: Iterable[Scenario]) -> TensorBatch:
        """Observations and instructions of some slots, as the policy's inputs."""
        instructions = [scenario.instruction for scenario in scenarios]
        inputs = self.policy.prepare(seen.frames, instructions, seen.proprioception)
        return self.policy.encode(inputs) if self._encode else inputs

    def decide(self, lanes: Lanes, rows: Rows) -> Decided:
        """The policy's decision for some slots; its noise follows from the scenarios that they play."""
        seen = lanes.buffer.observation.take(rows)
        inputs = self.prepare(seen, lanes.scenarios[rows])
        # Also where actions are not drawn: a policy may start from noise.
        decision = self.policy.act(inputs, self._sampling, lanes.noise_keys(rows))
        return Decided(seen, inputs, decision, decision.actions.cpu().numpy())


def join_rows(parts: Sequence[Rows]) -> Rows:
    """All parts as one; a slice if they follow each other without a gap."""
    slices = [part for part in parts if isinstance(part, slice)]
    if len(slices) == len(parts) and all(one.stop == other.start for one, other in pairwise(slices)):
        return slice(slices[0].start, slices[-1].stop)
    each: list[NDArray[np.intp]] = [np.arange(p.start, p.stop) if isinstance(p, slice) else p for p in parts]
    return np.concatenate(each)


def count_rows(rows: Rows) -> int:
    """How many slots these are."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def place_rows(parts: Sequence[Rows]) -> list[tuple[Rows, slice]]:
    """Each part with its position among the joined rows."""
    ends = accumulate(map(count_rows, parts))
    return [(part, slice(end - count_rows(part), end)) for part, end in zip(parts, ends, strict=True)]
