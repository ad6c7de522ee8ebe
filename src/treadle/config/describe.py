"""The configuration in words: every key with its type, default and line of documentation."""

import json
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from treadle.config.section import MOST

_PLAIN: dict[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    Any: "any value",
    type(None): "none",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One setting."""

    name: str
    """Dotted path, `algorithm.gamma`."""
    type: str
    """What is allowed, in words: `number > 0 and <= 1`."""
    default: str
    """As it is written in a recipe; empty where there is none."""
    doc: str
    annotation: Any
    """The type itself, without its bounds."""

    @property
    def optional(self) -> bool:
        """Whether `none` is allowed."""
        return type(None) in get_args(self.annotation)

    @property
    def textual(self) -> bool:
        """Whether a bare word is the value itself: the key takes text or a path."""
        members = get_args(self.annotation) if _is_union(self.annotation) else (self.annotation,)
        return any(member in (str, Path) for member in members)

    @property
    def listed(self) -> bool:
        """Whether the key is a list of plain values."""
        members = get_args(self.annotation) if _is_union(self.annotation) else (self.annotation,)
        return any(get_origin(m) in (tuple, list) and get_origin(get_args(m)[0]) not in (tuple, list) for m in members)

    @property
    def open(self) -> bool:
        """Whether the key is a table that takes any key below it."""
        return get_origin(self.annotation) is dict or self.annotation is dict


def describe(model: type[BaseModel], prefix: str = "", defaults: BaseModel | None = None) -> list[Key]:
    """Every key of a configuration class, sections included, in the order they are written.

    `defaults`: values in place of the class's own (evaluation samples greedily, which is not the default of sampling).
    """
    keys: list[Key] = []
    for name, field in model.model_fields.items():
        dotted, inner = _join(prefix, name), section_class(field)
        own = field.get_default(call_default_factory=True, validated_data={})
        value: Any = own if defaults is None else getattr(defaults, name)
        if inner is not None:
            keys += describe(inner, dotted, value if isinstance(value, BaseModel) else None)
            continue
        default = "" if value is PydanticUndefined else toml_text(value)
        allowed = _words(field.annotation, field.metadata)
        keys.append(Key(dotted, allowed, default, field.description or "", field.annotation))
    return keys


def sections(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """The dotted names of the sections of a configuration class, and what each is; the class itself is `""`."""
    found = {prefix: " ".join((model.__doc__ or "").split())}
    for name, field in model.model_fields.items():
        inner = section_class(field)
        if inner is not None:
            found |= sections(inner, _join(prefix, name))
    return found


def section_class(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is a section, as its default has it; None for a setting."""
    if isinstance(field.default, BaseModel):
        return type(field.default)
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def toml_text(value: Any) -> str:
    """A value as it is written in a recipe."""
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "none"
        case str() | Path():
            return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
        case list() | tuple():
            return "[" + ", ".join(toml_text(item) for item in value) + "]"  # pyright: ignore[reportUnknownVariableType]
        case dict():
            return "{" + ", ".join(f"{key} = {toml_text(item)}" for key, item in value.items()) + "}"  # pyright: ignore[reportUnknownVariableType]
        case _:
            return str(value)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def allows(annotation: Any, value: Any) -> bool:
    """Whether a value of a recipe is of a type, as strictly as settings are read; True for a type that is not plain."""
    try:
        adapter = TypeAdapter[Any](annotation)
    except PydanticSchemaGenerationError:
        return True
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError):
        return False
    return True


def type_words(annotation: Any) -> str:
    """What a type allows, in words."""
    return _words(annotation)


def _words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        annotated: list[Any] = []
        for item in arguments[1:]:
            annotated += item.metadata if isinstance(item, FieldInfo) else [item]
        return _words(arguments[0], annotated)
    if _is_union(annotation):
        return " or ".join(_words(member) for member in arguments)
    if origin is Literal:
        return " or ".join(toml_text(value) for value in arguments)
    if origin in (tuple, list):
        members = [member for member in arguments if member is not Ellipsis]
        if origin is tuple and len(members) == len(arguments):
            return "[" + ", ".join(_words(member) for member in members) + "]"
        return f"list of {_words(members[0])}"
    if origin is dict or annotation is dict:
        return "table"
    return _PLAIN.get(annotation, str(annotation)) + _bounds(metadata)


def _bounds(metadata: Sequence[Any]) -> str:
    signs = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))
    bounds = [(sign, getattr(b, name)) for b in metadata for kind, name, sign in signs if isinstance(b, kind)]
    words = [f"{sign} {bound}" for sign, bound in bounds if bound != MOST]
    return " " + " and ".join(words) if words else ""


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)
