"""Generators of malformed input: for each file that a command reads, copies in which one thing is wrong."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treadle.config.describe import describe, toml_text
from treadle.config.schema import TrainConfig

DEEP = "[" * 5000 + "]" * 5000
WRONG: list[Any] = [None, True, -1, 10**30, 1.5, "", "a" * 5000, "\0", [], {}, [[1]], {"a": {}}]
"""Values that a key may have by mistake."""


@dataclass(frozen=True)
class Malformed:
    """One input: a command, and what is put into a file before it, which errors must name."""

    label: str
    arguments: tuple[str, ...]
    path: Path | None = None
    content: bytes = b""
    named: tuple[str, ...] = ()
    """Any of these must be in the error."""


def changed(document: Any) -> Iterator[tuple[str, str]]:
    """Texts of a JSON document in which one value is wrong, or missing, with the place; then texts that are no JSON."""

    def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
        for key, inner in entries:
            yield (*place, key)
            yield from places(inner, (*place, key))

    for place in places(document):
        for wrong in WRONG:
            copy = json.loads(json.dumps(document))
            inner = copy
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = wrong
            yield f"{place}={str(wrong)[:20]}", json.dumps(copy)
    text = json.dumps(document)
    yield from [("cut", text[:-5]), ("empty", ""), ("list", "[1]"), ("deep", DEEP), ("deeper", f'{{"a": {DEEP}}}')]
    yield from [("digits", f'{{"name": {"9" * 5000}}}'), ("text", '"text"'), ("nul", "\0")]


def damaged(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Copies of a binary file that is cut short, or has other bytes at its beginning."""
    yield from [(f"cut at {i}/8", content[: len(content) * i // 8]) for i in range(8)]
    yield from [("text", b"hello"), ("zeros", bytes(len(content))), ("nothing of it", content[1:])]
    yield from [(f"byte {i}", content[:i] + bytes([content[i] ^ 255]) + content[i + 1 :]) for i in range(8)]


def overrides() -> Iterator[Malformed]:
    """Every setting of a run, with values that no setting takes, and keys that are none."""
    for key in describe(TrainConfig):
        last = key.name.rpartition(".")[2]
        for wrong in ("[[1]]", "{a = {}}", "9" * 5000, "-" + "9" * 40, "nan", DEEP, "a\0b", "x" * 5000, "1979-05-27"):
            yield Malformed(
                f"{key.name}={wrong[:12]}",
                ("train", "quickstart", f"{key.name}={wrong}"),
                named=(last, "settings", "no checkpoint folder"),
            )
        for name in (f"{key.name}x", f"{key.name}.inner", f"x.{key.name}", f"{key.name}\0", f".{key.name}"):
            yield Malformed(f"{name}=1", ("train", "quickstart", f"{name}=1"), named=(last, "settings", "'x'"))


def recipes(folder: Path) -> Iterator[Malformed]:
    """The file of a recipe, as TOML and as a run's `config.json`."""
    path = folder / "recipe.json"
    for label, text in changed(json.loads(TrainConfig(name="a").model_dump_json())):
        named = ("recipe.json", *re.findall(r"'(\w+)'\)", label))
        yield Malformed(f"config.json {label}", ("train", str(path)), path, text.encode(), named)
    path = folder / "recipe.toml"
    for key in describe(TrainConfig):
        section, _, last = key.name.rpartition(".")
        for wrong in ([[1]], {"a": {"b": 1}}, 10**30, -(10**18), "\0", "a" * 5000):
            lines = [f"[{section}]"] if section else []
            text = "\n".join([*lines, f"{last} = {toml_text(wrong)}", ""])
            named = (path.name, key.name)
            yield Malformed(f"{key.name} = {str(wrong)[:12]}", ("train", str(path)), path, text.encode(), named)


def checkpoints(folder: Path, files: str = "*") -> Iterator[Malformed]:
    """Every file of a checkpoint directory, or those of a pattern."""
    for path in sorted(folder.rglob(files)):
        if path.suffix == ".json":
            copies = [(label, text.encode()) for label, text in changed(_short(json.loads(path.read_bytes())))]
        elif path.is_file():
            copies = list(damaged(path.read_bytes()))
        else:
            continue
        for label, content in copies:
            yield Malformed(
                f"{path.name} {label}", ("policy", "inspect", str(folder)), path, content, (folder.name, path.name)
            )


def datasets(folder: Path) -> Iterator[Malformed]:
    """Every file of a LeRobot data set."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            copies = [(label, text.encode()) for label, text in changed(_short(json.loads(path.read_bytes())))]
        elif path.suffix == ".jsonl":
            first, *rest = path.read_text().splitlines()
            texts = changed(_short(json.loads(first)))
            copies = [(label, "\n".join([text, *rest]).encode()) for label, text in texts]
        elif path.is_file():
            copies = list(damaged(path.read_bytes()))
        else:
            continue
        for label, content in copies:
            named = (folder.name, path.name)
            yield Malformed(f"{path.name} {label}", ("data", "check", str(folder)), path, content, named)


def reports(folder: Path) -> Iterator[Malformed]:
    """Every file that a report is made of."""
    for path in sorted(folder.rglob("*.json")):
        for label, text in changed(json.loads(path.read_bytes())):
            yield Malformed(f"{path.name} {label}", ("report", str(folder)), path, text.encode(), (path.name,))
    path = folder / "metrics.jsonl"
    line = path.read_text().splitlines()[0]
    for label, text in changed(json.loads(line)):
        content = f"{line}\n{text}\n".encode()
        yield Malformed(f"{path.name} {label}", ("report", str(folder)), path, content, (path.name,))


def _short(value: Any) -> Any:
    """A document whose long lists and tables are cut, such as a vocabulary."""
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in list(value.items())[:24]}
    return [_short(inner) for inner in value[:8]] if isinstance(value, list | tuple) else value
