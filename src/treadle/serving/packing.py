"""Messages as the clients of openpi pack them: msgpack, with arrays and numbers of numpy as tables.

An array is {__ndarray__: true, data, dtype, shape}, a number {__npgeneric__: true, data, dtype}, with keys in bytes.
Layout follows Physical-Intelligence/openpi, `packages/openpi-client` (Apache 2.0); no code of it is used.
"""

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

import numpy as np

from treadle import plugins
from treadle.errors import RequestError
from treadle.reading import shown

_ARRAY, _NUMBER, _DATA, _DTYPE, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
_KINDS = "biuf"
"""Kinds of numbers that are read: flags, whole numbers, floating-point numbers."""
_AXES = 8
_DEEPEST = 16


def import_extra(name: str) -> ModuleType:
    """A package of the extra `serve`. Raises ConfigError where it is not installed."""
    return plugins.import_extra(name, "serve", "treadle serve")


def pack(message: Mapping[str, Any]) -> bytes:
    """A message in bytes."""
    return cast("bytes", import_extra("msgpack").packb(message, default=_plain))


def unpack(content: bytes) -> dict[str, Any]:
    """The message of some bytes. Raises RequestError for what is none, or holds what is no plain data."""
    msgpack = import_extra("msgpack")
    try:
        found = msgpack.unpackb(content, raw=False, object_hook=_revive, strict_map_key=True)
    except RequestError:
        raise
    except (ValueError, msgpack.UnpackException) as error:
        said = str(error) or type(error).__name__
        raise RequestError(f"message: not msgpack: {said:.120}") from error
    if not isinstance(found, dict):
        raise RequestError(f"message: found {shown(found)}; allowed: a table of keys")
    return _texts(cast("dict[Any, Any]", found))


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: value.shape}
    if isinstance(value, np.generic):
        return {_NUMBER: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _revive(table: dict[Any, Any]) -> Any:
    """The array or number that a table stands for, or the table."""
    if _ARRAY in table:
        dtype, shape, data = _dtype(table.get(_DTYPE)), table.get(_SHAPE), table.get(_DATA)
        fits = (
            isinstance(shape, list) and len(shape) <= _AXES and all(type(side) is int and side >= 0 for side in shape)
        )
        if not fits or not isinstance(data, bytes) or len(data) != math.prod(cast("list[int]", shape)) * dtype.itemsize:
            size = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
            raise RequestError(f"an array: shape {shown(shape)} of {dtype} with data of {size}; they must fit")
        return np.frombuffer(data, dtype).reshape(cast("list[int]", shape))
    if _NUMBER in table:
        dtype, value = _dtype(table.get(_DTYPE)), table.get(_DATA)
        if not isinstance(value, bool | int | float):
            raise RequestError(f"a number: found {type(value).__name__}; allowed: a number of type {dtype}")
        try:
            return dtype.type(value)
        except (OverflowError, ValueError) as error:
            raise RequestError(f"a number: found {shown(value)}; allowed: a number of type {dtype}") from error
    return table


def _dtype(name: object) -> np.dtype[Any]:
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    try:
        found = np.dtype(text) if isinstance(text, str) and len(text) <= _DEEPEST else None
    except (TypeError, ValueError, SyntaxError):
        found = None
    if found is None or found.kind not in _KINDS or found.shape:
        raise RequestError(f"an array: dtype {shown(str(text))}; allowed: types of numbers, such as '|u1' or '<f4'")
    return found


def _texts(table: dict[Any, Any], depth: int = 0) -> dict[str, Any]:
    """A table whose keys are texts, as the tables in it are. Raises RequestError."""
    if depth > _DEEPEST:
        raise RequestError(f"message: more than {_DEEPEST} tables inside each other")
    plain: dict[str, Any] = {}
    for key, value in table.items():
        name = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
        if not isinstance(name, str):
            raise RequestError(f"message: key {shown(name)}; allowed: texts")
        plain[name] = _texts(cast("dict[Any, Any]", value), depth + 1) if isinstance(value, dict) else value
    return plain
