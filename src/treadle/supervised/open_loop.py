"""How far a policy's actions are from those of a data set: no action is played.

Shapes: n decisions, C actions of a chunk, A action dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.demonstrations import Demonstrations
from treadle.data.noise import noise_key
from treadle.policies.protocol import Policy
from treadle.policies.sampling import Sampling
from treadle.supervised.inputs import prepare_rows

_NOISE = 0x6F6C
"""Keeps the noise apart from that of training and evaluation."""
_BATCH = 32

Restore = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""Actions [n, C, A] as the data set has them, of those that the policy decided in states [n, P]."""


@dataclass(frozen=True, slots=True)
class OpenLoopError:
    """Mean absolute errors of the actions that a policy would have executed."""

    of_dimensions: list[float]
    """A errors, in the data set's units."""
    mean: float
    """Their mean, each in units of its standard deviation in the data set where it has one."""
    past_end: float | None
    """The same of actions past the end of an episode, compared with its last action: 0 stands still. None where no
    decision reaches so far."""
    decisions: int

    def report(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "mean": self.mean,
            "of_dimensions": self.of_dimensions,
            "past_end": self.past_end,
            "decisions": self.decisions,
        }


@torch.no_grad()
def open_loop_error(
    policy: Policy,
    demonstrations: Demonstrations,
    restore: Restore | None,
    *,
    first: int = 0,
    stop: int | None = None,
    most: int = 512,
) -> OpenLoopError:
    """Compare decisions at every C-th frame of each episode from frame `first` to `stop` of all, as if each chunk had
    been executed, with what the data set did. Of more than `most` decisions, some that are evenly spread are taken.
    """
    policy.eval()
    episode, chunk = demonstrations.episode_index, policy.chunk
    rows = np.flatnonzero(demonstrations.frame_index % chunk == 0)
    rows = rows[(rows >= first) & (rows < (len(episode) if stop is None else stop))]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64))]
    last = np.searchsorted(episode, episode[rows], side="right") - 1
    places = rows[:, None] + np.arange(chunk)
    over = places > last[:, None]
    wanted = demonstrations.actions[np.minimum(places, last[:, None])]
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        inputs = prepare_rows(policy, demonstrations, part, encode=False)
        decided = policy.act(inputs, Sampling(temperature=0), noise_key(_NOISE, part)).actions.float().cpu().numpy()
        found.append(decided if restore is None else restore(decided, demonstrations.state[part]))
    off = np.abs(np.concatenate(found) - wanted).astype(np.float64)
    spread = demonstrations.actions.astype(np.float64).std(axis=0)
    unit = np.where(spread > 1e-8, spread, 1.0)
    mean = off[~over].mean(axis=0)
    past = float((off[over] / unit).mean()) if over.any() else None
    return OpenLoopError(mean.tolist(), float((mean / unit).mean()), past, len(rows))
