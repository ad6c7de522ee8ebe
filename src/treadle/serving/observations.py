"""What a client shows: cameras, proprioception and an instruction, found in a message by their names.

Shapes: H and W pixels, P proprioception.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.errors import RequestError

STATE, PROMPT = "state", "prompt"
_PREFIXES = ("observation.images.", "observation/images/", "observation/", "observation.", "images/")
"""What may stand before a name: keys of openpi's robots, of its tables inside tables, and of LeRobot."""
_LARGEST_SIDE = 4096
_LONGEST_PROMPT = 4096


@dataclass(frozen=True, slots=True)
class Shown:
    """One observation."""

    frames: list[NDArray[np.uint8]]
    """[1, H, W, 3] for each camera, RGB, in the policy's order."""
    state: NDArray[np.float32] | None
    """[1, P]"""
    prompt: str


def read_observation(message: Mapping[str, Any], cameras: Sequence[str]) -> Shown:
    """The observation of a message. Without names of `cameras` it must hold one picture. Other keys are not read.

    Raises RequestError, which names the key, what was found and what is allowed.
    """
    found: dict[str, tuple[str, Any]] = {}
    for key, value in _leaves(message):
        name = _plain_name(key)
        if name in found:
            raise RequestError(f"{key}: {found[name][0]} is there too; both mean {name!r}: send one")
        found[name] = key, value
    pictures = [name for name, (_, value) in found.items() if isinstance(value, np.ndarray) and value.ndim == 3]
    if not cameras and len(pictures) != 1:
        raise RequestError(
            f"the message has {len(pictures)} pictures ({', '.join(pictures) or 'none'}); start the server with "
            "--camera NAME for each, in the order in which the policy sees them"
        )
    wanted = list(cameras) or pictures
    for name in [*wanted, PROMPT]:
        if name not in found:
            raise RequestError(f"the message lacks {name!r}; it has {', '.join(sorted(found)) or 'nothing'}")
    key, prompt = found[PROMPT]
    if not isinstance(prompt, str) or len(prompt) > _LONGEST_PROMPT:
        raise RequestError(
            f"{key}: found {type(prompt).__name__}; allowed: a text of at most {_LONGEST_PROMPT} letters"
        )
    return Shown(
        [_read_picture(*found[name])[None] for name in wanted],
        _read_state(*found[STATE])[None] if STATE in found else None,
        prompt,
    )


def _leaves(message: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a message and of the tables in it, by keys joined with a slash."""
    for key, value in message.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}/")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{prefix}{key}", value


def _plain_name(key: str) -> str:
    for prefix in _PREFIXES:
        if key.startswith(prefix) and len(key) > len(prefix):
            return key.removeprefix(prefix)
    return key


def _read_picture(key: str, value: object) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 of a picture with its channels last or first, in bytes or in floats of [0, 1]."""
    allowed = "allowed: [H, W, 3] or [3, H, W] in uint8, or in floats of 0 to 1"
    if not isinstance(value, np.ndarray):
        raise RequestError(f"{key}: found {type(value).__name__}; {allowed}")
    shape = list(value.shape)
    if value.ndim == 3 and shape[2] != 3 and shape[0] == 3:
        value = value.transpose(1, 2, 0)
    if value.ndim != 3 or value.shape[2] != 3 or not all(0 < side <= _LARGEST_SIDE for side in value.shape[:2]):
        raise RequestError(f"{key}: found {value.dtype} {shape}; {allowed}, of sides up to {_LARGEST_SIDE}")
    if value.dtype.kind == "f":
        if not bool(((value >= 0) & (value <= 1)).all()):
            raise RequestError(f"{key}: found floats from {value.min():g} to {value.max():g}; {allowed}")
        value = (value * 255).round().astype(np.uint8)
    if value.dtype != np.uint8:
        raise RequestError(f"{key}: found {value.dtype} {shape}; {allowed}")
    return np.ascontiguousarray(value)


def _read_state(key: str, value: object) -> NDArray[np.float32]:
    """[P] numbers."""
    if isinstance(value, list) and all(isinstance(number, int | float) for number in value):  # pyright: ignore[reportUnknownVariableType]
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iuf":
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise RequestError(f"{key}: found {found}; allowed: a vector of numbers")
    return value.astype(np.float32)
