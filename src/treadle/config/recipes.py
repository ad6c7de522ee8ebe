"""Recipes: the settings of a run by name, and what else must be known of them.

A recipe is a TOML file below `recipes/`, named by its path there. Its first line is a comment that says what it is. It
has the settings of `treadle train` or `treadle sft`, and these keys beside them:

| key | what |
|---|---|
| `extends` | another file of the folder, which this one adds to |
| `protocol` | the protocol whose settings lie below the recipe's own, so that it is evaluated as published |
| `[about]` | what is no setting: where its checkpoint is found, what it was published on, what differs |
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from treadle.config.named_files import (
    Table,
    first_comment,
    is_table,
    merge,
    protocol_files,
    read_extended,
    recipe_files,
)
from treadle.config.section import Positive, Section
from treadle.errors import ConfigError, did_you_mean
from treadle.reading import check_path, shown

PROTOCOL, ABOUT = "protocol", "about"
SUFFIXES = (".toml", ".json")
CONFIG = "config.json"
"""The settings of a run, in its folder."""


class About(Section):
    """What is no setting of a recipe."""

    source: str = ""
    """Who published the run that it follows, and where."""
    checkpoint: str = ""
    """Where its checkpoint is published, by its name on Hugging Face."""
    size: str = ""
    """Size of that checkpoint, which is planned with where it is not here: 7b."""
    facts: dict[str, Any] = {}
    """What that checkpoint has, by settings of `policy.options`; others do not fit the recipe."""
    devices: Positive | None = None
    """Graphics cards of 80 GB that it is for."""
    needs: tuple[str, ...] = ()
    """Settings that nobody but the user knows, and that a run must be given."""
    differs: tuple[str, ...] = ()
    """What Treadle does otherwise than whoever published the run."""


class Recipe(Section):
    """The settings of a run."""

    name: str
    path: Path
    summary: str
    settings: dict[str, Any]
    """Those of the protocol below its own."""
    own: dict[str, Any]
    """Those that the recipe states itself, or by what it extends."""
    protocol: str | None = None
    about: About = About()

    def stated(self, section: str, key: str) -> Any:
        """A setting that the recipe or its protocol states; None where it is left to the default."""
        table = self.settings.get(section)
        return table.get(key) if is_table(table) else None


def recipes() -> dict[str, str]:
    """Names of all recipes that are installed, each with its first comment line. Raises ConfigError."""
    return {name: first_comment(path) for name, path in recipe_files().items()}


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe's name, or of a path to a `.toml` or `.json`. Raises ConfigError."""
    path = check_path(name_or_path, "recipe", ConfigError)
    if path.suffix in SUFFIXES and path.is_file():
        return path
    files = recipe_files()
    if name_or_path in files:
        return files[name_or_path]
    if path.suffix not in SUFFIXES and not path.is_absolute() and not path.exists():
        raise ConfigError(
            f"unknown recipe {name_or_path!r}{did_you_mean(name_or_path, files)}; `treadle recipes` lists those there "
            "are; or give a path to a .toml file"
        )
    if (path / CONFIG).is_file():
        raise ConfigError(
            f"recipe {name_or_path!r} is a folder; for the settings of a run give its file: {path / CONFIG} name=..."
        )
    if path.suffix in SUFFIXES or not path.is_file():
        found = "is a folder, not a recipe file" if path.is_dir() else "does not exist"
        raise ConfigError(f"recipe {name_or_path!r} {found}; `treadle recipes` lists those there are")
    raise ConfigError(f"recipe {name_or_path!r} is no {' or '.join(SUFFIXES)} file; write it as TOML")


def read_recipe(name_or_path: str) -> Recipe:
    """The recipe of a name, or of a path. Raises ConfigError for a file that cannot be read."""
    return _read(name_or_path, find_recipe(name_or_path), protocol_files)


def read_recipes() -> list[Recipe]:
    """All recipes that are installed. Raises ConfigError for a file that cannot be read."""
    protocols = protocol_files()
    return [_read(name, path, lambda: protocols) for name, path in recipe_files().items()]


def _read(name: str, path: Path, protocols: Callable[[], Mapping[str, Path]]) -> Recipe:
    own = read_extended(path)
    protocol, about = own.pop(PROTOCOL, None), own.pop(ABOUT, {})
    try:
        known = About.model_validate(about)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        place = ".".join(map(str, (ABOUT, *item["loc"])))
        raise ConfigError(f"{path}: {place}: {item['msg']}; keys: {', '.join(About.model_fields)}") from error
    return Recipe(
        name=name,
        path=path,
        summary=first_comment(path),
        settings=merge(_below(path, protocol, protocols), own),
        own=own,
        protocol=protocol,
        about=known,
    )


def _below(path: Path, protocol: object, protocols: Callable[[], Mapping[str, Path]]) -> Table:
    """The settings of a protocol. Raises ConfigError for one that is not there."""
    if protocol is None:
        return {}
    files = protocols()
    if not isinstance(protocol, str) or protocol not in files:
        near = did_you_mean(protocol, files) if isinstance(protocol, str) else ""
        raise ConfigError(
            f"{path}: {PROTOCOL}: found {shown(protocol)}{near}; allowed: a name that `treadle protocols` lists"
        )
    settings = read_extended(files[protocol]).get("settings", {})
    return settings if is_table(settings) else {}
