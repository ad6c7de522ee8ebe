"""Recipes and protocols as files: TOML below a folder of Treadle's, or of a package that brings its own. A file is
named by its path there. It may add to another file, which its key `extends` names; files whose names begin with an
underscore are there for this alone.
"""

from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from treadle.errors import ConfigError
from treadle.reading import check_path, read_json, read_toml, shown

Table = dict[str, Any]

_PACKAGE = Path(__file__).parent.parent
RECIPES, RECIPE_GROUP = _PACKAGE / "recipes", "treadle.recipes"
PROTOCOLS, PROTOCOL_GROUP = _PACKAGE / "protocols", "treadle.protocols"
"""The folders, and the entry points of packages whose folders hold more of the kind."""
EXTENDS = "extends"


def recipe_files() -> dict[str, Path]:
    """The installed recipes by name. Raises ConfigError where a package that offers some is not there."""
    return _named(RECIPES, RECIPE_GROUP)


def protocol_files() -> dict[str, Path]:
    """The installed protocols by name. Raises ConfigError where a package that offers some is not there."""
    return _named(PROTOCOLS, PROTOCOL_GROUP)


def parse_file(path: Path) -> Table:
    """The settings of a TOML or JSON file. Raises ConfigError."""
    data: Any = read_json(path, ConfigError) if path.suffix == ".json" else read_toml(path, ConfigError)
    if not is_table(data):
        raise ConfigError(f"{path}: holds no table of settings")
    return data


def read_extended(path: Path) -> Table:
    """The same, with what the file extends below it. Raises ConfigError."""
    return _extended(path, ())


def first_comment(path: Path) -> str:
    """The first line of a file, which is a comment that says what it is."""
    return path.read_text(encoding="utf-8").partition("\n")[0].strip().removeprefix("#").strip()


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Table:
    """Both tables, and the tables in them, as one; `over` wins."""
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if is_table(below) and is_table(value) else value
    return merged


def is_table(value: Any) -> TypeGuard[Table]:
    """Whether a value is a table of a file."""
    return isinstance(value, dict)


def _named(folder: Path, group: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for place in [folder, *_offered(group)]:
        for path in sorted(place.rglob("*.toml"), key=lambda path: path.with_suffix("")):
            if not path.name.startswith("_"):
                found.setdefault(path.relative_to(place).with_suffix("").as_posix(), path)
    return found


def _offered(group: str) -> list[Path]:
    """Folders of the packages that an entry point group names. Raises ConfigError where such a package is not there."""
    folders: list[Path] = []
    for entry in sorted(metadata.entry_points(group=group)):
        try:
            spec = find_spec(entry.value)
        except ModuleNotFoundError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"entry point {entry.name!r} of {group}: {entry.value!r} is no package; name one whose folder "
                "holds .toml files, and install it again"
            )
        folders += map(Path, spec.submodule_search_locations)
    return folders


def _extended(path: Path, above: tuple[Path, ...]) -> Table:
    data = parse_file(path)
    base = data.pop(EXTENDS, None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{path}: {EXTENDS}: found {shown(base)}; allowed: the path of another file, without .toml")
    other = path.parent / check_path(f"{base}.toml", f"{path}: {EXTENDS}", ConfigError)
    if not other.is_file():
        raise ConfigError(f"{path}: {EXTENDS}: found {base!r}, but there is no {other}")
    if other.resolve() in (path.resolve(), *above):
        raise ConfigError(f"{path}: {EXTENDS}: found {base!r}, which comes back to itself; name another file")
    return merge(_extended(other, (path.resolve(), *above)), data)
