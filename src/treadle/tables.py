"""Typed readers of files: strict types and ranges, and what is wrong is said with file and key.

A table is a pydantic model. A field is used, or its type allows one value alone; `ignored` names keys that change
nothing here; any other key is an error, but for a `LooseTable`.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, ClassVar, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from treadle.errors import CheckpointError, TreadleError
from treadle.reading import shown

_WORDS = {
    "Input should be ": "allowed: ",
    "List should have ": "allowed: ",
    "allowed: None": "allowed: null",
    "a valid dictionary": "an object",
}
"""pydantic's words, and those that fit a file."""


class Table(BaseModel):
    """The keys of one file, or of one object in it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Keys that change nothing here. So do keys that begin with `_`, transformers' own notes."""


class LooseTable(Table):
    """An object that may have further keys, which nobody reads."""

    model_config = ConfigDict(extra="ignore")


AnyTable = TypeVar("AnyTable", bound=Table)


def read_table(
    table: type[AnyTable],
    content: object,
    file: object,
    place: str = "",
    error: type[TreadleError] = CheckpointError,
) -> AnyTable:
    """The settings of a file, or of the object at `place` in it. Raises `error`, which names file, key, what was found
    and what is allowed.
    """
    source = f"{file}: {place}" if place else str(file)
    if not isinstance(content, Mapping):
        raise error(f"{source}: found {shown(content)}; allowed: an object")
    kept = {key: value for key, value in content.items() if key not in table.ignored and not key.startswith("_")}
    return check(table, kept, error, f"{source}: ")


def check(model: type[AnyTable], values: Mapping[str, Any], error: type[TreadleError], prefix: str = "") -> AnyTable:
    """`values` as the model has them. Raises `error` for the first that cannot be used."""
    try:
        return model.model_validate(values)
    except ValidationError as problem:
        raise error(prefix + _explained(model, values, problem)) from None


def check_fields(config: Any, names: tuple[str, ...], error: type[TreadleError]) -> None:
    """Raises `error` where a field of a dataclass, of those named, has a value that its type or range forbids."""
    check(_model_of(type(config), names), {name: getattr(config, name) for name in names}, error)


@cache
def _model_of(config: type, names: tuple[str, ...]) -> type[Table]:
    hints = get_type_hints(config, include_extras=True)
    chosen: dict[str, Any] = {item.name: (hints[item.name], ...) for item in fields(config) if item.name in names}
    return create_model(config.__name__, __base__=Table, **chosen)


def _explained(model: type[BaseModel], values: Mapping[str, Any], problem: ValidationError) -> str:
    # A union reports each of its members; the one that came furthest was meant.
    errors = problem.errors(include_url=False)
    places = [_place(values, error["loc"]) for error in errors]
    chosen = max(range(len(errors)), key=lambda i: (len(places[i]), not errors[i]["type"].endswith("_type")))
    item, place, found = errors[chosen], "".join(places[chosen]).removeprefix("."), shown(errors[chosen]["input"])
    if item["type"] == "missing":
        return f"no {place!r}; it must be given"
    if item["type"] == "extra_forbidden":
        return f"unknown key {place!r}: found {found}; remove it if the policy does not depend on it"
    if item["type"] == "value_error":
        return (f"{place}: " if place else "") + item["msg"].removeprefix("Value error, ")
    allowed = item["msg"].partition(" after validation")[0]
    for theirs, ours in _WORDS.items():
        allowed = allowed.replace(theirs, ours)
    field = model.model_fields.get(str(item["loc"][0]))
    hint = f" ({field.description})" if field is not None and field.description else ""
    return f"{place}: found {found}; {allowed}{hint}"


def _place(root: Mapping[str, Any], loc: tuple[int | str, ...]) -> list[str]:
    """The keys and indices that lead to an error, without pydantic's names for the members of a union."""
    inner: Any = root
    place: list[str] = []
    for number, part in enumerate(loc):
        if isinstance(inner, Mapping) and (part in inner or number == len(loc) - 1):
            place.append(f".{part}")
            inner = inner.get(part)  # pyright: ignore[reportUnknownMemberType]
        elif isinstance(inner, list | tuple) and isinstance(part, int):
            place.append(f"[{part}]")
            inner = inner[part]
    return place
