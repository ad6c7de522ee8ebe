"""The manifest of an evaluation: all that its figures depend on, as plain data."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from treadle.config.protocols import WHERE
from treadle.config.schema import EvaluationConfig, LoadingConfig, SimulatorConfig
from treadle.data.scenario import Scenario
from treadle.files import to_json
from treadle.policies.protocol import Policy
from treadle.reporting.machine import source_commit, versions
from treadle.simulators.build import find_simulator, installed_simulators, simulator_environment
from treadle.workers import queries
from treadle.workers.crew import Crew

WEIGHTS = (".safetensors", ".pt")
SETTINGS_FILES = (".json", ".model", ".txt")
"""Beside weights: statistics, tokenizer, preprocessor, configuration."""

Manifest = dict[str, Any]


def manifest(
    checkpoint: Path, policy: LoadingConfig, simulator: SimulatorConfig, evaluation: EvaluationConfig
) -> Manifest:
    """What is known without a simulator: files and settings."""
    return {
        "checkpoint": checkpoint_label(checkpoint),
        "checkpoint_path": str(checkpoint.resolve()),
        "weights_sha256": _digests(checkpoint, WEIGHTS),
        "files_sha256": _digests(checkpoint, SETTINGS_FILES),
        "policy": policy.model_dump(mode="json", include=set(LoadingConfig.model_fields)),
        "simulator": simulator.model_dump(mode="json"),
        "evaluation": evaluation.model_dump(mode="json"),
        "split": "evaluation",
        "versions": versions(),
        "commit": source_commit(),
    }


def checkpoint_label(checkpoint: Path) -> str:
    """A short name for a checkpoint's folder: its own, or its run's for the `policy` of a run."""
    path = checkpoint.resolve()
    return path.parent.name if path.name == "policy" else path.name


def facts_of(policy: Policy, crew: Crew, simulator: SimulatorConfig) -> Manifest:
    """What the loaded policy and the simulator's own Python say: processing, versions of physics, the renderer."""
    interpreter = crew.plan.factory.interpreter
    return {
        "policy_facts": policy.describe(),
        "device": policy.device.type,
        "simulator_versions": crew.call(queries.VERSIONS, simulator_packages(simulator)),
        "renderer": crew.call(queries.RENDERER),
        "simulator_variables": {} if interpreter is None else dict(interpreter.variables),
    }


def scenarios_digest(scenarios: Sequence[Scenario]) -> dict[str, Any]:
    """How many scenarios were asked for, and a hash of their names, tasks and instructions in order."""
    lines = "".join(f"{scenario.id}\t{scenario.task}\t{scenario.instruction}\n" for scenario in scenarios)
    return {"count": len(scenarios), "sha256": hashlib.sha256(lines.encode()).hexdigest()}


def simulator_packages(config: SimulatorConfig) -> list[str]:
    """Packages that physics and pictures may depend on: those of the simulator's environment; where it has none, the
    package that offers it with what that requires.
    """
    environment = simulator_environment(config.name)
    if environment is not None:
        return [_name(requirement) for requirement in environment.requirements]
    entry = installed_simulators().get(config.name.partition(":")[0])
    if entry is not None and entry.dist is not None:
        offering = [entry.dist.name]
    else:
        module = find_simulator(config.name)[0].partition(":")[0]
        offering = metadata.packages_distributions().get(module.partition(".")[0], [])
    found: list[str] = []
    for distribution in offering:
        required = metadata.requires(distribution) or []
        found += [distribution, *(_name(line) for line in required if "extra ==" not in line)]
    return sorted(dict.fromkeys(found))


def identity(made: Mapping[str, Any]) -> str:
    """A short name of what an evaluation is: the same for two calls that must give the same results."""
    kept = {key: value for key, value in made.items() if key not in ("checkpoint", "checkpoint_path", "protocol")}
    for dotted in WHERE:
        section, key = dotted.split(".")
        kept[section] = {name: value for name, value in kept[section].items() if name != key}
    return hashlib.sha256(to_json(kept, None).encode()).hexdigest()[:8]


def _digests(folder: Path, endings: Sequence[str]) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in endings and path.is_file()
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found.group() if found else requirement
