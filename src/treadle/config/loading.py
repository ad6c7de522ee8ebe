"""Recipes: TOML files (or a run's `config.json`) and `section.key=value` overrides, read into a configuration class.

Everything that is wrong with a recipe is found in one pass and said in one `ConfigError`, a line for each.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, create_model

from treadle.config.algorithm import AlgorithmConfig, find_algorithm
from treadle.config.describe import Key, describe, section_class, sections, toml_text
from treadle.config.named_files import Table, is_table, merge, parse_file
from treadle.config.recipes import Recipe, read_recipe
from treadle.config.schema import TrainConfig
from treadle.config.supervised import SupervisedConfig
from treadle.errors import ConfigError, did_you_mean
from treadle.reading import LONGEST_PATH, brief, check_plain, shown

Config = TypeVar("Config", bound=BaseModel)

COMMANDS: dict[str, type[BaseModel]] = {"train": TrainConfig, "sft": SupervisedConfig}
"""What the recipes of each command are read into."""
_SHOWN = 120
"""Characters of a value that an error repeats."""
_ELSEWHERE = {
    "batch_size": "minibatch",
    "clip_range": "clip_high",
    "clip_ratio": "clip_high",
    "discount": "gamma",
    "lam": "gae_lambda",
    "lambda": "gae_lambda",
    "lora_rank": "rank",
    "lr": "learning_rate",
    "max_episode_steps": "horizon",
    "max_steps": "horizon",
    "micro_batch_size": "micro_batch",
    "mini_batch_size": "minibatch",
    "model_path": "checkpoint",
    "n_envs": "slots",
    "n_epochs": "epochs",
    "num_envs": "slots",
    "rollout_n": "group_size",
}
"""What keys are called in other frameworks, for the advice of an error."""


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), model: type[Config] = TrainConfig) -> Config:
    """The configuration of a run, from an installed recipe or a TOML file and `section.key=value` overrides.

    Raises ConfigError for an unknown recipe or one of another command, malformed TOML, and every unknown key or
    impossible value.
    """
    return configure(read_recipe(name_or_path), overrides, model)


def configure(recipe: Recipe, overrides: Sequence[str] = (), model: type[Config] = TrainConfig) -> Config:
    """The configuration of a recipe, with overrides. Raises as `load_recipe`."""
    _check_command(recipe.name, recipe.settings, model)
    given = {name.strip() for name, *_ in (override.partition("=") for override in overrides)}
    if missing := [key for key in recipe.about.needs if key not in given and not _is_set(recipe.settings, key)]:
        raise ConfigError(
            f"recipe {recipe.name!r} must be given {' and '.join(missing)}, as "
            f"{' '.join(f'{key}=VALUE' for key in missing)}"
        )
    return read_settings(model, recipe.settings, overrides, recipe.path)


def read_config(model: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Any configuration class, from a TOML or JSON file (or none) and overrides, which win. Raises ConfigError."""
    return read_settings(model, parse_file(path) if path is not None else {}, overrides, path)


def read_settings(model: type[Config], settings: Table, overrides: Sequence[str] = (), place: object = None) -> Config:
    """Any configuration class, from sections of settings and overrides, which win.

    Raises ConfigError, which names the `place` of the settings where there are no overrides.
    """
    data = deepcopy(settings)
    problems: list[str] = []
    source = f"{place}: " if place is not None and not overrides else ""
    check_plain(data, place or "settings", ConfigError)
    _check_texts(data, source)
    try:
        reader = _reader(model, data, overrides)
    except ConfigError as error:
        raise ConfigError(f"{source}{error}") from error
    keys = {key.name: key for key in describe(reader)}
    for override in overrides:
        problem = _override(data, override, keys)
        problems += [problem] if problem else []
    check_plain(data, place or "settings", ConfigError)
    _check_texts(data, source)
    _fill_sections(reader, data)
    try:
        # Strict, as JSON: no "3" or true for 3, yet arrays make tuples, text makes paths, and 1 is a number.
        config = reader.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        problems += _problems(reader, keys, error)
    else:
        if not problems:
            # The class itself, not the reader: equal configurations are equal, and can be sent to other processes.
            return model.model_construct(config.model_fields_set, **dict(config))
    if len(problems) == 1:
        raise ConfigError(source + problems[0])
    raise ConfigError(
        f"{source}{len(problems)} settings cannot be used\n" + "\n".join(f"  {line}" for line in problems)
    )


def _check_command(name: str, settings: Mapping[str, Any], model: type[BaseModel]) -> None:
    """Raises ConfigError where all sections of a recipe are those of another command, and some are not of this one."""
    foreign = ", ".join(sorted(settings.keys() - model.model_fields.keys()))
    if foreign and (command := command_of(settings)) is not None:
        raise ConfigError(
            f"recipe {name!r} is for `treadle {command}`, as its {foreign} says; run `treadle {command} {name}`"
        )


def _is_set(settings: Mapping[str, Any], key: str) -> bool:
    section, dot, rest = key.partition(".")
    inner = settings.get(section)
    return section in settings and (not dot or (is_table(inner) and _is_set(inner, rest)))


def command_of(settings: Mapping[str, Any]) -> str | None:
    """The command that a recipe is for, by its sections; None where it could be of several, or of none."""
    fitting = [command for command, model in COMMANDS.items() if settings.keys() <= model.model_fields.keys()]
    return fitting[0] if len(fitting) == 1 else None


def _reader(model: type[Config], data: Table, overrides: Sequence[str]) -> type[Config]:
    """The class that reads a recipe: `model`, with the section `algorithm` of the class that its `kind` names."""
    field = model.model_fields.get("algorithm")
    if field is None or not isinstance(field.default, AlgorithmConfig):
        return model
    # Overrides are read for the kind alone here; their mistakes are found once the keys are known.
    draft = deepcopy(data)
    for override in overrides:
        _override(draft, override, {})
    section = draft.get("algorithm")
    kind = section.get("kind", field.default.kind) if is_table(section) else field.default.kind
    if not isinstance(kind, str):
        raise ConfigError(f"algorithm.kind: found {toml_text(kind)}, allowed is text")
    found = find_algorithm(kind)
    return create_model(model.__name__, __base__=model, algorithm=(found, Field(default_factory=found)))


def _override(data: Table, override: str, keys: dict[str, Key]) -> str | None:
    """Put one `section.key=value` into `data`; returns what is wrong with it, if anything."""
    name, equals, text = override.partition("=")
    *path, last = name.strip().split(".")
    if not equals or not all([*path, last]):
        near = did_you_mean(name, keys) if name not in keys else ""
        return f"override {override!r} is not of the form section.key=value{near}"
    table = data
    for part in path:
        inner = table.get(part)
        if not is_table(inner):
            inner = table[part] = {}
        table = inner
    table[last] = _value(text.strip(), keys.get(name.strip()))
    return None


def _value(text: str, key: Key | None) -> Any:
    if key is not None and key.optional and text == "none":
        return None
    if key is not None and key.listed and not (text.startswith("[") and _is_toml(text)):
        # As a shell leaves it: `train,vision`, `[train, vision]`, or one alone.
        if text.startswith("[") != text.endswith("]"):
            return text
        inner = (text[1:-1] if text.startswith("[") else text).strip().removesuffix(",")
        return [_value(part.strip(), None) for part in inner.split(",")] if inner else []
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        name = "settings" if key is None else key.name
        raise ConfigError(f"{name}: found {shown(text)}, which cannot be read: {brief(error)}") from error
    if len(found) > 1:
        return text
    value = found["value"]
    # `name=2024` and `name=true` mean the text.
    return text if key is not None and key.textual and not isinstance(value, str) else value


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return False
    return True


def _fill_sections(model: type[BaseModel], data: Table) -> None:
    """Where a section is given in part, the rest is the section's default, not the defaults of its class."""
    for name, field in model.model_fields.items():
        given, inner = data.get(name), section_class(field)
        if inner is None or not is_table(given):
            continue
        if isinstance(field.default, BaseModel):
            data[name] = merge(field.default.model_dump(mode="json", exclude_defaults=True), given)
        _fill_sections(inner, data[name])


def _check_texts(table: Table, source: str, prefix: str = "") -> None:
    """Raises ConfigError for keys and texts that hold what no name and no path can."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        for text in (key, *(value if isinstance(value, list) else [value])):  # pyright: ignore[reportUnknownVariableType]
            if isinstance(text, str) and (len(text) > LONGEST_PATH or not text.isprintable()):
                raise ConfigError(
                    f"{source}{shown(name)[1:-1]}: found {shown(text)}; allowed is text of at most {LONGEST_PATH} "
                    "letters without control characters"
                )
            if is_table(text):
                _check_texts(text, source, f"{name}.")


def _problems(model: type[BaseModel], keys: dict[str, Key], error: ValidationError) -> list[str]:
    lines: list[str] = []
    names = sections(model)
    for item in error.errors(include_url=False):
        place, known = _place(item["loc"], keys, names)
        found = item.get("input")
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {place!r}{_nearest_key(place, keys, names)}")
        elif item["type"] == "value_error":
            lines.append((f"{place}: " if place else "") + item["msg"].removeprefix("Value error, "))
        elif item["type"] == "missing" and place in keys:
            lines.append(f"{place}: must be given, allowed is {keys[known].type}")
        elif known in keys:
            lines.append(f"{place}: found {_short(found)}, allowed is {keys[known].type}")
        elif known in names:
            lines.append(f"{place}: found {_short(found)}, but {place!r} is a section; its keys: {_own(known, keys)}")
        else:
            lines.append(f"{place}: found {_short(found)}: {item['msg']}")
    # A union reports each of its members.
    return list(dict.fromkeys(lines))


def _short(value: Any) -> str:
    text = toml_text(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."


def _place(loc: tuple[int | str, ...], keys: dict[str, Key], names: Iterable[str]) -> tuple[str, str]:
    """The dotted place of an error as a person writes it, and the longest key or section in it."""
    place, known = "", ""
    for part in loc:
        if isinstance(part, int):
            place += f"[{part}]"
            continue
        if known in keys and not keys[known].open:
            break  # pydantic goes on with the members of a union
        place = f"{place}.{part}" if place else part
        known = place if place in keys or place in names else known
    return place, known


def _nearest_key(place: str, keys: dict[str, Key], names: dict[str, str]) -> str:
    """What was probably meant: a key of the same section, then one of the same name elsewhere, then one like it."""
    section, _, last = place.rpartition(".")
    last = _ELSEWHERE.get(last, last)
    known = [*keys, *filter(None, names)]
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    near = [siblings[word] for word in difflib.get_close_matches(last, siblings, n=2)] if section in names else []
    if not near:
        words = difflib.get_close_matches(last, {name.rpartition(".")[2] for name in keys}, n=1, cutoff=0.7)
        near = [name for name in keys if name.rpartition(".")[2] in words][:3]
    if not near and section not in names:
        near = difflib.get_close_matches(place, known, n=2)
    if near:
        return f", did you mean {' or '.join(repr(name) for name in near)}?"
    if section and section in names:
        return f"; keys of {section!r}: {_own(section, keys)}"
    return f"; keys: {_own('', keys)}; sections, with keys of their own: {_own('', filter(None, names))}"


def _own(section: str, keys: Iterable[str]) -> str:
    return ", ".join(name.rpartition(".")[2] for name in keys if name.rpartition(".")[0] == section)
