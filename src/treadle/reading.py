"""Files that others wrote, read without trust: whatever is wrong with one is a named error that says file and key.

Sizes and depths have limits, so that no file makes the program allocate or wait. Imports the standard library alone:
simulators in a Python of their own use it.
"""

import json
import os
import re
import stat
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, cast

from treadle.errors import TreadleError

MOST_TEXT = 2**28
"""Bytes of a text file."""
DEEPEST = 64
"""Tables and lists inside one another."""
LARGEST_INTEGER = 2**64 - 1
LONGEST_PATH, LONGEST_NAME = 4095, 255
"""Bytes of a path, and of each name in it, as Linux has them."""
_SHOWN = 160
"""Characters of a library's message, or of a value, that an error repeats."""

Error = type[TreadleError]


def read_bytes(path: Path, error: Error, most: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises `error`."""
    try:
        found = path.stat()
        # A pipe would be waited for without end, and a device may have no end.
        if not stat.S_ISREG(found.st_mode):
            raise error(f"{path}: a {'folder' if stat.S_ISDIR(found.st_mode) else 'device or pipe'}, not a file")
        if found.st_size > most:
            raise error(f"{path}: {found.st_size} bytes; a file of this kind has at most {most}")
        return path.read_bytes()
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read: {brief(problem)}") from problem


def read_text(path: Path, error: Error, most: int = MOST_TEXT) -> str:
    """The text of a file in UTF-8. Raises `error`."""
    try:
        return read_bytes(path, error, most).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text, byte {problem.start}") from problem


def read_json(path: Path, error: Error) -> Any:
    """The content of a JSON file. Raises `error`."""
    return parse_json(read_text(path, error), path, error)


def read_toml(path: Path, error: Error) -> dict[str, Any]:
    """The content of a TOML file. Raises `error`."""
    return parse_toml(read_text(path, error), path, error)


def parse_json(text: str | bytes, source: object, error: Error) -> Any:
    """JSON from `source`, which an error names. Raises `error`."""
    return _parse(json.loads, text, "JSON", source, error)


def parse_toml(text: str, source: object, error: Error) -> dict[str, Any]:
    """TOML from `source`, which an error names. Raises `error`."""
    return _parse(tomllib.loads, text, "TOML", source, error)


def check_plain(root: Any, source: object, error: Error) -> None:
    """Raises `error` for plain data that is nested too deeply, or has a whole number that no 64 bits hold."""
    left: list[tuple[Any, int, str]] = [(root, 0, "")]
    while left:
        value, depth, place = left.pop()
        if isinstance(value, dict | list):
            if depth >= DEEPEST:
                shortened = place if len(place) <= _SHOWN else f"{place[:_SHOWN]}..."
                raise error(f"{source}: {shortened.lstrip('.')}: more than {DEEPEST} tables or lists inside each other")
            if isinstance(value, dict):
                entries = cast("dict[str, Any]", value).items()
                left += [(inner, depth + 1, f"{place}.{key}") for key, inner in entries]
            else:
                left += [(each, depth + 1, f"{place}[{i}]") for i, each in enumerate(cast("list[Any]", value))]
        elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            text = str(value)
            raise error(
                f"{source}: {place.lstrip('.')}: found {text[:20]}..., a whole number of {len(text)} digits; "
                "allowed: 64 bits"
            )


def check_path(name: str, source: object, error: Error) -> Path:
    """The path that a text means, which `source` names. Raises `error` for one that no file can have."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        encoded = b"\0"
    if not name or any(byte < 32 for byte in encoded):
        raise error(f"{source}: found {shown(name)}; allowed: a path, without control characters")
    if len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise error(f"{source}: found {shown(name)}, a path of {len(encoded)} bytes, longer than a file can have")
    return Path(name)


def path_inside(folder: Path, name: object, source: object, error: Error) -> Path:
    """The file of a relative path inside a folder; links are followed. Raises `error` for a path that leaves it."""
    if not isinstance(name, str):
        raise error(f"{source}: found {shown(name)}; allowed: the path of a file inside {folder}")
    check_path(name, source, error)
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0].startswith("/") or re.match(r"[A-Za-z]:", name):
        raise error(f"{source}: found {shown(name)}, which leads out of {folder}; allowed: a path inside it")
    return folder / name


@contextmanager
def library(source: object, error: Error, kind: str, advice: str = "") -> Generator[None, None, None]:
    """What a library raises while it reads `source` as `kind` becomes `error`: it may be anything, for files that the
    library was not made for. The only place that catches everything.
    """
    try:
        yield
    except TreadleError:
        raise
    except BaseException as problem:
        # Libraries in Rust panic with a class of their own that is no Exception.
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise
        raise error(f"{source}: not readable as {kind}: {brief(problem)}{advice}") from problem


def brief(problem: BaseException) -> str:
    """What an error says, in one short line; torch's advice to read files without protection is left out."""
    said = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    if "weights_only" in said or "Weights only load failed" in said:
        found = re.search(r"WeightsUnpickler error: ([^\n]*)", said)
        reason = found[1].strip().partition(". Please")[0] if found else "a pickle of another kind"
        said = f"it holds more than tensors and plain data ({reason})"
    line = _printable(next((line for line in said.splitlines() if line.strip()), type(problem).__name__).strip())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 4]} ..."


def shown(value: object, most: int = 80) -> str:
    """A value as its file has it, in one line, shortened."""
    try:
        text = json.dumps(value, default=repr)
    except (ValueError, RecursionError, TypeError):
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _parse(parse: Any, text: str | bytes, kind: str, source: object, error: Error) -> Any:
    try:
        content = parse(text)
    except RecursionError as problem:
        raise error(f"{source}: not valid {kind}: tables or lists inside each other without end") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{source}: not valid {kind}: not UTF-8 text, byte {problem.start}") from problem
    except ValueError as problem:
        digits = re.search(r"value has (\d+) digits", str(problem))
        said = f"a whole number of {digits[1]} digits" if digits else brief(problem)
        raise error(f"{source}: not valid {kind}: {said}{_after(text, problem)}") from problem
    check_plain(content, source, error)
    return content


def _after(text: str | bytes, problem: ValueError) -> str:
    """The key that stands before the place of an error, where that is known."""
    position = getattr(problem, "pos", None)
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    if position is None and (number := re.search(r"\d{4000,}", text)):
        position = number.start()
    keys = re.findall(r'"?([\w.-]{1,100})"?\s*[:=]', text[max(0, position - 4000) : position]) if position else []
    return f" (behind the key {keys[-1]!r})" if keys else ""


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
