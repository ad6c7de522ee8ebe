"""Protocols: complete settings of an evaluation by name, and the figures that were published under them.

A protocol is a TOML file below `protocols/`, named by its path there. Its first line is a comment that says what it is.

| key | what |
|---|---|
| `[settings.SECTION]` | settings of the sections policy, simulator, collection and evaluation |
| `columns` | columns of the published table, each the mean over suites |
| `[[published]]` | a row of that table |
| `caveats` | what a reader of the figures must know |
| `differs` | what Treadle still does otherwise than whoever published the protocol, shown with each use |
| `extends` | another file of the folder, which this one adds to |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from treadle.config.loading import read_settings
from treadle.config.named_files import first_comment, protocol_files, read_extended
from treadle.config.run_directory import differing_keys, flatten
from treadle.config.schema import CollectionConfig, EvaluationConfig, LoadingConfig, SimulatorConfig
from treadle.config.section import Section
from treadle.errors import ConfigError, did_you_mean

WHERE = ("simulator.slots", "simulator.threads", "simulator.python", "evaluation.slots", "evaluation.videos")
"""Settings that say how an evaluation is played, not what is played; results do not depend on them."""
Percent = Annotated[float, Field(ge=0, le=100)]


class EvalConfig(Section):
    """What `treadle eval` takes as key=value."""

    policy: LoadingConfig = LoadingConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    collection: CollectionConfig = CollectionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


class Published(Section):
    """Figures that somebody published under a protocol."""

    model: str
    sampling: str
    """How actions were chosen: greedy, sampled at 1.6, or not said."""
    source: str
    """Who says so, and where."""
    success: dict[str, Percent]
    """In percent, by column."""
    note: str = ""


class Protocol(Section):
    """Complete settings of an evaluation."""

    name: str
    summary: str
    settings: dict[str, dict[str, Any]] = {}
    columns: dict[str, tuple[str, ...]] = {}
    """Suites of each column of the published table."""
    published: tuple[Published, ...] = ()
    caveats: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()

    def config(self, overrides: Sequence[str] = ()) -> EvalConfig:
        """The settings, with `key=value` in place of its own. Raises ConfigError."""
        return read_settings(EvalConfig, self.settings, overrides, f"protocol {self.name!r}")

    def departures(self, settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Settings that are otherwise than this protocol has them, as keys with both values, the protocol's first. What
        it does not state has its default. `settings`: by section, as plain data.
        """
        stated, used = flatten(self.settings), flatten(settings)
        wanted = flatten(EvalConfig().model_dump(mode="json")) | stated
        keys = [key for key in differing_keys(wanted, used) if key not in WHERE and key.startswith(tuple(settings))]
        return [(key, wanted.get(key), used.get(key)) for key in keys]


def protocols() -> dict[str, Protocol]:
    """The protocols that are installed, by name. Raises ConfigError for a file that cannot be read."""
    return {name: read_protocol(name, path) for name, path in protocol_files().items()}


def find_protocol(name: str) -> Protocol:
    """The protocol of a name, or of a path to a `.toml`. Raises ConfigError."""
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ConfigError(f"protocol {name!r} does not exist; `treadle protocols` lists those there are")
        return read_protocol(path.stem, path)
    files = protocol_files()
    if name not in files:
        raise ConfigError(
            f"unknown protocol {name!r}{did_you_mean(name, files)}; `treadle protocols` lists those there are; or "
            "give a path to a .toml file"
        )
    return read_protocol(name, files[name])


def read_protocol(name: str, path: Path) -> Protocol:
    """Read a protocol's file. Raises ConfigError, which names file and key."""
    data = read_extended(path)
    for key in ("name", "summary"):
        if key in data:
            raise ConfigError(f"{path}: found {key!r}, which the file's own place and first line say; delete it")
    try:
        found = Protocol(name=name, summary=first_comment(path), **data)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        raise ConfigError(
            f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}; keys of a protocol: "
            f"{', '.join(Protocol.model_fields)}, extends"
        ) from error
    columns = {column for row in found.published for column in row.success}
    if unknown := sorted(columns - found.columns.keys()):
        raise ConfigError(f"{path}: published figures of {unknown[0]!r}, but columns has {', '.join(found.columns)}")
    return found
