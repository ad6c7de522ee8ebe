"""Where image, proprioception and instruction lie in what an environment returns.

A place is a path of keys, `agent/image`; the empty path is the whole observation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from treadle.errors import ConfigError

_KEY = "simulator.options."
_INFO_KEYS = ("instruction", "language_instruction", "task_description")


def leaves(space: spaces.Space[Any], place: str = "") -> dict[str, spaces.Space[Any]]:
    """The spaces that hold no further ones, by place."""
    if not isinstance(space, spaces.Dict):
        return {place: space}
    return {
        name: leaf
        for key, inner in space.spaces.items()
        for name, leaf in leaves(inner, f"{place}/{key}" if place else key).items()
    }


def value_at(observation: Any, place: str) -> Any:
    """What lies at a place; None where nothing does."""
    for key in place.split("/") if place else ():
        if not isinstance(observation, Mapping) or key not in observation:
            return None
        observation = observation[key]
    return observation


def as_number(value: Any) -> float | None:
    """The one number that a value is, or an array of one number holds; None where it is anything else."""
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return float(found.reshape(())) if found.size == 1 and found.dtype.kind in "biuf" else None


def as_flag(value: Any) -> bool | None:
    """The one flag that a value is, 0 and 1 among them; None where it is anything else."""
    found = as_number(value)
    return bool(found) if found in (0.0, 1.0) else None


def shown(value: Any) -> str:
    """A value that does not fit, for errors: `float32 [64, 64, 3]`, `'1'`, `None`."""
    return (
        f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) and value.size > 1 else repr(value)[:80]
    )


def describe(space: spaces.Space[Any]) -> str:
    """What an observation space holds, for errors: `image [64, 64, 3] uint8, instruction Text`."""
    return ", ".join(
        f"{place or 'observation'} {list(leaf.shape)} {leaf.dtype}"
        if isinstance(leaf, spaces.Box)
        else f"{place or 'observation'} {type(leaf).__name__}"
        for place, leaf in leaves(space).items()
    )


def _arrays(space: spaces.Space[Any], dimensions: int, kind: type[np.generic]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of so many dimensions and that kind of number, by place."""
    boxes = {place: leaf for place, leaf in leaves(space).items() if isinstance(leaf, spaces.Box)}
    return {
        place: box.shape
        for place, box in boxes.items()
        if len(box.shape) == dimensions and np.issubdtype(box.dtype, kind)
    }


def image_places(wanted: str | Sequence[str] | None, space: spaces.Space[Any]) -> tuple[str, ...]:
    """Places of the cameras' images, as option `image` wants them or the only image that there is.

    Raises ConfigError.
    """
    key = f"{_KEY}image"
    images = {place: shape for place, shape in _arrays(space, 3, np.uint8).items() if shape[2] == 3}
    if wanted is None:
        if len(images) == 1:
            return tuple(images)
        found = f"{len(images)} images" if images else "no image"
        raise ConfigError(
            f"{key}: the environment's observations hold {found} [H, W, 3] uint8; they hold: {describe(space)}; "
            "name one or a list of them, or 'render' for what the environment draws"
        )
    places = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    for place in places:
        if place not in images:
            raise ConfigError(
                f"{key}: {place!r} is no image [H, W, 3] uint8 of the observations; they hold: {describe(space)}"
            )
    if not places or len({images[place] for place in places}) > 1:
        raise ConfigError(f"{key}: {list(places)} must be one or more images of one size; see {describe(space)}")
    return places


def proprioception_place(wanted: str | None, space: spaces.Space[Any]) -> tuple[str, int] | None:
    """Place and size of the proprioception, as option `proprioception` wants it or the only vector of numbers that
    there is; None where there is none or `wanted` is empty. Raises ConfigError.
    """
    key = f"{_KEY}proprioception"
    vectors = {place: shape[0] for place, shape in _arrays(space, 1, np.floating).items()}
    if wanted == "":
        return None
    if wanted is not None:
        if wanted not in vectors:
            raise ConfigError(
                f"{key}: {wanted!r} is no vector of numbers of the observations; they hold: {describe(space)}"
            )
        return wanted, vectors[wanted]
    if len(vectors) > 1:
        raise ConfigError(
            f"{key}: the observations hold several vectors of numbers: {', '.join(vectors)}; name one, or '' for none"
        )
    return next(iter(vectors.items()), None)


def instruction_in(place: str, observation: Any, info: Mapping[str, Any]) -> str | None:
    """The text at a place of the observation or, failing that, of the info; None where there is none."""
    for holder in (observation, info):
        found = value_at(holder, place)
        if isinstance(found, str):
            return found
    return None


def instruction_place(wanted: str | None, space: spaces.Space[Any], observation: Any, info: Mapping[str, Any]) -> str:
    """Place of the instruction in observations or infos, of which the first ones are given: as option `instruction_key`
    wants it, or the only text that there is. Raises ConfigError.
    """
    texts = [place for place, leaf in leaves(space).items() if isinstance(leaf, spaces.Text)]
    known = [name for name in _INFO_KEYS if isinstance(info.get(name), str)]
    candidates = [wanted] if wanted is not None else texts or known
    if len(candidates) == 1 and instruction_in(candidates[0], observation, info) is not None:
        return candidates[0]
    found = f"no text at {wanted!r}" if wanted is not None else f"{len(candidates)} texts" if candidates else "no text"
    raise ConfigError(
        f"{_KEY}instruction_key: {found} in the environment's observations ({describe(space)}) and in the info of "
        f"reset() ({', '.join(info) or 'empty'}); name the key that holds the instruction, or say what is asked in "
        f"{_KEY}instruction"
    )
