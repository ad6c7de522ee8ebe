"""An evaluation again, from its manifest: what is otherwise, and whether the result is inside the interval."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from treadle.config.loading import read_settings
from treadle.config.protocols import WHERE, EvalConfig
from treadle.config.run_directory import differing_keys, flatten
from treadle.config.section import Share
from treadle.errors import ConfigError
from treadle.evaluation.episodes import EPISODES_FILE, Episodes, read_episodes
from treadle.evaluation.folder import MANIFEST_FILE
from treadle.evaluation.statistics import Rule, succeeded
from treadle.files import to_json
from treadle.reading import read_json
from treadle.reporting.tables import Grid, Row, interval, percent
from treadle.tables import LooseTable, read_table

_SECTIONS = {
    "weights_sha256": "weights",
    "files_sha256": "checkpoint's files",
    "policy": "how the checkpoint is read",
    "policy_facts": "processing",
    "device": "device",
    "simulator": "simulator",
    "simulator_versions": "versions where the simulator lives",
    "renderer": "renderer",
    "simulator_variables": "environment of the simulator",
    "evaluation": "evaluation",
    "ablation": "ablation",
    "horizons": "horizon",
    "scenarios": "scenario list",
    "split": "split",
    "versions": "versions here",
    "commit": "commit",
}
"""What is compared, and its name for people; what changes results most comes first."""


_NEEDED = ("suites", "evaluation", "simulator", "policy")
_ADVICE = "give the manifest.json that `treadle eval` writes into its folder, or the file of its --json"


class _Suite(LooseTable):
    success: Share
    ci95: Annotated[list[Share], Field(min_length=2, max_length=2)]


class _Manifest(LooseTable):
    suites: dict[str, _Suite]
    checkpoint_path: str = ""
    protocol: str | None = None
    ablation: dict[str, Literal["own", "shuffled", "blank"]] = {}


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that two manifests have otherwise."""

    what: str
    """Such as weights, scenario list."""
    key: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.what}: {self.key} was {self.before}, is {self.after}"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a file, or in the folder of an evaluation, with the results `suites` in it. The file may be
    `manifest.json`, or any result of `treadle eval` or of a run's evaluation. Raises ConfigError and OutputError.
    """
    file = path / MANIFEST_FILE if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; {_ADVICE}")
    found = read_json(file, ConfigError)
    if isinstance(found, dict) and isinstance(found.get("manifest"), dict):
        found = {**found["manifest"], "suites": found.get("suites")}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in _NEEDED):
        raise ConfigError(f"{file}: no manifest of an evaluation with its results; {_ADVICE}")
    read_table(_Manifest, found, file, error=ConfigError)
    return found


def settings_of(manifest: Mapping[str, Any], overrides: Sequence[str] = ()) -> EvalConfig:
    """The settings that an evaluation had, with `key=value` in place of its own.

    Raises ConfigError for what this version does not know.
    """
    sections = {key: manifest[key] for key in ("policy", "simulator", "evaluation")}
    return read_settings(EvalConfig, sections, overrides, "manifest")


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """What two manifests have otherwise, of what results may depend on.

    A part that one of them has not recorded at all, as earlier versions did not, is no difference.
    """
    # As files have them, so that a tuple is a list.
    before, after = json.loads(to_json(before)), json.loads(to_json(after))
    found: list[Difference] = []
    for section, what in _SECTIONS.items():
        if section in before and section in after:
            old, new = (flatten({section: manifest[section]}) for manifest in (before, after))
            found += [
                Difference(what, key, _shown(old, key), _shown(new, key))
                for key in differing_keys(old, new)
                if key not in WHERE
            ]
    return found


def verdicts(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, bool]:
    """For each suite of the manifest, whether the new success lies in the 95 % interval of the old one."""
    verdict: dict[str, bool] = {}
    for suite, old in before["suites"].items():
        low, high = old["ci95"]
        new = after["suites"].get(suite)
        verdict[suite] = new is not None and low - 1e-12 <= new["success"] <= high + 1e-12
    return verdict


def reproduction(path: Path, before: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """What came of evaluating again, as plain data; `path` is that of the manifest."""
    after = {**report["manifest"], "suites": report["suites"]}
    kept = path if path.is_dir() else path.parent
    rule = before["evaluation"]["success"]
    episodes, changed = changed_episodes(
        read_episodes(kept / EPISODES_FILE), read_episodes(Path(report["folder"]) / EPISODES_FILE), rule
    )
    inside = verdicts(before, after)
    return {
        "inside": all(inside.values()),
        "suites": inside,
        "differences": [asdict(difference) for difference in differences(before, after)],
        "episodes_compared": episodes,
        "episodes_changed": changed,
    }


def reproduction_grids(before: Mapping[str, Any], report: Mapping[str, Any], found: Mapping[str, Any]) -> list[Grid]:
    """Success then and now, and what differs; `found` is what `reproduction` returned."""
    grid = Grid("Then and now", ["suite", "then", "95 % interval", "now", "verdict"], text=("verdict",))
    for suite, inside in found["suites"].items():
        old, new = before["suites"][suite], report["suites"].get(suite)
        now = percent(new["success"]) if new else "not played"
        verdict = "inside" if inside else "OUTSIDE"
        grid.rows.append(Row([suite, percent(old["success"]), interval(old["ci95"]), now, verdict], "strong"))
    if found["episodes_compared"]:
        grid.note = f"Of {found['episodes_compared']} episodes, {found['episodes_changed']} came out otherwise."
    differing = Grid("What differs", ["what", "key", "then", "now"], text=("key", "then", "now"))
    for item in found["differences"]:
        differing.rows.append(Row([item["what"], item["key"], item["before"], item["after"]]))
    if not differing.rows:
        grid.note = f"{grid.note} Nothing differs that results may depend on.".strip()
    return [grid, *([differing] if differing.rows else [])]


def changed_episodes(before: Episodes, after: Episodes, rule: Rule) -> tuple[int, int]:
    """Of the episodes that both have: how many there are, and how many came out otherwise."""
    both = [
        (result, after[suite][number])
        for suite, of in before.items()
        for number, result in of.items()
        if number in after.get(suite, {})
    ]
    return len(both), sum(succeeded(old, rule) is not succeeded(new, rule) for old, new in both)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "absent"
    value = flat[key]
    return value[:12] if isinstance(value, str) and len(value) in (40, 41, 64) else to_json(value, None)
