"""What a policy reads of demonstrations: prepared once and kept, or batch by batch from their files.

Shapes: N frames of all episodes, n some of them.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.data.batch import TensorBatch
from treadle.data.demonstrations import Demonstrations
from treadle.errors import ConfigError
from treadle.policies.protocol import Policy
from treadle.supervised.grounding import prepare_all

Frames = NDArray[np.uint8] | list[NDArray[np.uint8]]
"""[n, cameras, H, W, 3], or [n, H, W, 3] of each camera."""
_SLOWEST = 600.0
"""Seconds that the frames of a batch may take."""


class Inputs(Protocol):
    """A policy's inputs of N frames."""

    def take(self, rows: Tensor) -> TensorBatch:
        """Those of some frames."""
        ...

    def announce(self, rows: Tensor) -> None:
        """Say what is taken next."""
        ...


class KeptInputs:
    """Inputs that are in memory."""

    def __init__(self, inputs: TensorBatch) -> None:
        self._inputs = inputs

    def take(self, rows: Tensor) -> TensorBatch:
        """See `Inputs.take`."""
        return self._inputs.take(rows)

    def announce(self, rows: Tensor) -> None:
        """Nothing to do."""


class StreamedInputs:
    """Inputs that are made anew for each batch. Frames of one batch are decoded while another is learned from; nothing
    else is kept.

    Args:
        encode: compute what frozen vision makes of the frames too.
    """

    def __init__(self, policy: Policy, demonstrations: Demonstrations, *, encode: bool) -> None:
        self._policy, self._of, self._encode = policy, demonstrations, encode
        # One thread alone reads the files.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="frames")
        self._next: tuple[Tensor, Future[Frames]] | None = None

    def take(self, rows: Tensor) -> TensorBatch:
        """See `Inputs.take`."""
        known, self._next = self._next, None
        reading = known[1] if known is not None and torch.equal(known[0], rows) else self._submit(rows)
        try:
            frames = reading.result(timeout=_SLOWEST)
        except TimeoutError as error:
            raise ConfigError(
                f"dataset: the frames of a batch of {len(rows)} were not read in {_SLOWEST:g} s; see to its disk"
            ) from error
        return prepare_frames(self._policy, self._of, rows.cpu().numpy(), frames, encode=self._encode)

    def announce(self, rows: Tensor) -> None:
        """See `Inputs.announce`."""
        self._next = rows, self._submit(rows)

    def _submit(self, rows: Tensor) -> Future[Frames]:
        return self._reader.submit(lambda: self._of.frames[rows.cpu().numpy()])


def prepare_rows(
    policy: Policy, demonstrations: Demonstrations, rows: NDArray[np.integer], *, encode: bool
) -> TensorBatch:
    """The inputs of some frames."""
    return prepare_frames(policy, demonstrations, rows, demonstrations.frames[rows], encode=encode)


def prepare_frames(
    policy: Policy,
    demonstrations: Demonstrations,
    rows: NDArray[np.integer],
    frames: Frames,
    *,
    encode: bool,
) -> TensorBatch:
    """The inputs of some rows, whose frames were read."""
    instructions = [demonstrations.instructions[row] for row in rows.tolist()]
    found = policy.prepare(frames, instructions, demonstrations.state[rows])
    return policy.encode(found) if encode else found


def make_inputs(policy: Policy, demonstrations: Demonstrations, *, encode: bool, cache_gb: float) -> Inputs:
    """The inputs of all frames: kept if they take at most `cache_gb`, as the first one tells."""
    one = prepare_rows(policy, demonstrations, np.zeros(1, np.int64), encode=encode)
    if input_bytes(one) * len(demonstrations.actions) > cache_gb * 1e9:
        return StreamedInputs(policy, demonstrations, encode=encode)
    frames, instructions, state = demonstrations.frames, demonstrations.instructions, demonstrations.state
    return KeptInputs(prepare_all(policy, frames, instructions, state, encode=encode))


def input_bytes(inputs: TensorBatch) -> int:
    """Bytes of all tensors of some inputs."""
    return sum(tensor.numel() * tensor.element_size() for tensor in inputs.tensors().values())
