"""What a shell completes: names of recipes, protocols, checkpoints, simulators and suites; settings and their values.

Suites are those that recipes, protocols and defaults name: a simulator's own are known only once it is made.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

from treadle.config.algorithm import known_algorithms
from treadle.config.checkpoints import checkpoints
from treadle.config.describe import Key, describe
from treadle.config.loading import COMMANDS, command_of
from treadle.config.named_files import Table, first_comment, is_table, protocol_files, read_extended
from treadle.config.on_policy import ESTIMATORS
from treadle.config.recipes import read_recipes
from treadle.config.schema import EvaluationConfig, SimulatorConfig

Offer = list[tuple[str, str]]
"""Words, each with what it is."""
DEVICES = ("auto", "cpu", "cuda", "cuda:0")


def complete_recipe(ctx: typer.Context, incomplete: str) -> Offer:
    """Names of the recipes of a command, or of all for a command that is for none alone."""
    command = {"plan": "train"}.get(str(ctx.command.name), str(ctx.command.name))
    found = [
        (recipe.name, recipe.summary)
        for recipe in read_recipes()
        if command not in COMMANDS or command_of(recipe.settings) in (None, command)
    ]
    return _beginning(found, incomplete)


def complete_protocol(incomplete: str) -> Offer:
    """Names of protocols."""
    return _beginning(((name, first_comment(path)) for name, path in protocol_files().items()), incomplete)


def complete_checkpoint(incomplete: str) -> Offer:
    """Names of packaged checkpoints, and folders."""
    return _beginning([*_described(checkpoints(), "ships with Treadle"), *_folders(incomplete)], incomplete)


def complete_folder(incomplete: str) -> Offer:
    """Folders, such as those of runs."""
    return _folders(incomplete)


def complete_simulator(incomplete: str) -> Offer:
    """Names of simulators."""
    return _beginning(_described(_simulators()), incomplete)


def complete_suite(ctx: typer.Context, incomplete: str) -> Offer:
    """Suites of the simulator that the command has so far, or of all."""
    return _beginning(_described(_suites(ctx.params)), incomplete)


def complete_device(incomplete: str) -> Offer:
    """Devices."""
    return _beginning(_described(DEVICES), incomplete)


def complete_command(incomplete: str) -> Offer:
    """Commands that have settings."""
    return _beginning(_described((*COMMANDS, "eval")), incomplete)


def complete_settings(
    model: type[BaseModel], also: Callable[[str], Offer] | None = None
) -> Callable[[typer.Context, str], Offer]:
    """A completion of `key=value`: keys, and behind a `=` values; `also` what else may stand there."""

    def complete(ctx: typer.Context, incomplete: str) -> Offer:
        keys = {key.name: key for key in describe(model)}
        # Bash takes `=` for a word of its own, and completes what is behind it: a key alone is no word before others.
        for given in (value for value in ctx.params.values() if isinstance(value, list | tuple)):
            before = given[:-1] if given[-1:] == ["="] else given
            if before and before[-1] in keys and (before is not given or not incomplete):
                return _values(keys[before[-1]], incomplete, ctx.params)
        name, equals, text = incomplete.partition("=")
        if equals and name in keys:
            return [(f"{name}={value}", doc) for value, doc in _values(keys[name], text, ctx.params)]
        found = [key for key in keys.values() if key.name.startswith(incomplete)]
        if len(found) == 1 and incomplete:
            # Behind a key alone a shell puts a space.
            return [(f"{found[0].name}={value}", found[0].doc) for value, _ in _values(found[0], "", ctx.params)]
        return [*((f"{key.name}=", key.doc) for key in found), *(also(incomplete) if also else ())]

    return complete


def _values(key: Key, text: str, params: dict[str, Any]) -> Offer:
    """Values of a key that begin with what is there; of a list, its last part."""
    before, comma, last = text.rpartition(",") if key.listed else ("", "", text)
    offered = dict.fromkeys(chain(_named_values(key, params), _typed_values(key.annotation), _default(key)))
    return [(f"{before}{comma}{value}", key.doc) for value in offered if value.startswith(last)]


def _named_values(key: Key, params: dict[str, Any]) -> Iterable[str]:
    """Names that a key may have."""
    match key.name:
        case "simulator.name":
            return _simulators()
        case "evaluation.suites":
            return _suites(params)
        case "algorithm.kind":
            return known_algorithms()
        case "algorithm.estimator":
            return ESTIMATORS
        case "policy.kind" | "model.kind":
            from treadle.policies.load import installed_policies

            return installed_policies()
        case "policy.checkpoint" | "checkpoint" | "grounding.towers":
            return checkpoints()
        case "device":
            return DEVICES
        case _:
            return ()


def _typed_values(annotation: Any) -> Iterator[str]:
    """All values that a type has, where they are few."""
    if annotation is bool:
        yield from ("true", "false")
    elif annotation is type(None):
        yield "none"
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) not in (list, tuple, dict):
        for member in get_args(annotation):
            yield from _typed_values(member)


def _default(key: Key) -> Iterator[str]:
    text = key.default.strip('"')
    if text and not key.listed and not key.open:
        yield text


def _simulators() -> Iterable[str]:
    from treadle.simulators.build import installed_simulators

    return installed_simulators()


def _suites(params: dict[str, Any]) -> list[str]:
    """Suites that recipes, protocols and defaults name, of the simulator that a command has so far."""
    plays = SimulatorConfig().name
    tables: list[tuple[str, Table, str]] = [("", {}, plays)]
    tables += [(recipe.name, recipe.settings, plays) for recipe in read_recipes()]
    tables += [(name, read_extended(file).get("settings", {}), plays) for name, file in protocol_files().items()]
    played = {name: _of(settings, "simulator", "name") or plays for name, settings, plays in tables}
    words = [word for value in params.values() for word in (value if isinstance(value, list | tuple) else [value])]
    named = [word for word in words if word in played.values()] + [played[word] for word in words if word in played]
    found: dict[str, None] = {}
    for name, settings, _ in tables:
        if not named or played[name] in named:
            suites = _of(settings, "evaluation", "suites") or (() if name else EvaluationConfig().suites)
            found |= dict.fromkeys(map(str, suites))
    return list(found)


def _of(settings: Table, section: str, key: str) -> Any:
    table = settings.get(section)
    return table.get(key) if is_table(table) else None


def _folders(incomplete: str) -> Offer:
    try:
        found = sorted(Path().glob(f"{incomplete}*/") if not incomplete.startswith(("/", "~")) else ())
    except (OSError, ValueError, NotImplementedError):
        return []
    return [(str(path), "") for path in found if path.is_dir() and not path.name.startswith(".")]


def _described(words: Iterable[str], doc: str = "") -> Offer:
    return [(word, doc) for word in words]


def _beginning(offered: Iterable[tuple[str, str]], incomplete: str) -> Offer:
    return [(word, doc) for word, doc in offered if word.startswith(incomplete)]
