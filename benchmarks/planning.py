"""How far off a plan is: a profile is measured once, then a recipe runs in several ways, predicted beside measured."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from benchmarks.output import make_table, write_record
from treadle.config.loading import load_recipe
from treadle.config.schema import TrainConfig
from treadle.cores import usable_cores
from treadle.errors import PlacementError, TreadleError
from treadle.reporting.folder import RunFolder, read_run
from treadle.reporting.prediction import measured_seconds
from treadle.runtime.placement import Machines
from treadle.runtime.planning.measure import measure_profile
from treadle.runtime.planning.profile import plain, write_profile

Task = Literal["tabletop", "libero"]
_LONG_WAIT = 1800
"""Seconds after which a run that has not ended is given up."""
_SPLIT = ("placement.simulate=0", "placement.generate=0", "placement.train=1")
_ROLES_APART = ("placement.simulate=0", "placement.generate=1", "placement.train=all")
_GRPO_STREAM = ("algorithm.rounds=4", "algorithm.estimator=rloo_alike", "algorithm.minibatch=100000", "overlap=stream")
_EVALUATION = ('evaluation.suites=["train"]', "evaluation.episodes=1", "evaluation.videos=0", "save_every=1000")


def _crew(lanes: int, workers: int) -> tuple[str, ...]:
    return f"collection.lanes={lanes}", f"collection.workers={workers}"


WAYS: Mapping[Task, Mapping[str, tuple[str, ...]]] = {
    "tabletop": {
        "all on both cores, 1 lane": _crew(1, 1),
        "all on both cores, 2 lanes": _crew(2, 1),
        "all on both cores, 2 lanes, 2 workers": _crew(2, 2),
        "all on both cores, 4 lanes, 2 workers": _crew(4, 2),
        "simulating apart from generating, 1 lane": (*_ROLES_APART, *_crew(1, 1)),
        "simulating apart from generating, 2 lanes": (*_ROLES_APART, *_crew(2, 1)),
        "simulating apart from generating, 4 lanes": (*_ROLES_APART, *_crew(4, 1)),
        "training apart": (*_SPLIT, *_crew(1, 1)),
        "training apart, async": (*_SPLIT, *_crew(1, 1), "overlap=async"),
    },
    "libero": {
        "all on both cores, 1 lane": _crew(1, 1),
        "all on both cores, 2 lanes, 2 workers": _crew(2, 2),
        "training apart, async": (*_SPLIT, *_crew(1, 1), "overlap=async"),
    },
}
"""Ways of running the recipe of a task, each with the settings that make it."""
_STREAM = "training apart, 4 rounds of GRPO, stream"
_RECIPE: Mapping[Task, tuple[str, tuple[str, ...]]] = {
    "tabletop": ("quickstart", ("simulator.slots=128", "algorithm.minibatch=256")),
    "libero": ("libero-object", ("simulator.slots=8", "simulator.horizon=80", "decisions=10")),
}
_BASE: Mapping[Task, tuple[str, ...]] = {
    # Seconds count here, not success: a base that has seen two episodes costs as much as a good one.
    "libero": ("libero-object-base", "demonstrations.episodes=2", "imitation.steps=4", "evaluation.episodes=1"),
}


def run(task: Task, json: Path | None, overrides: Sequence[str] = (), *, iterations: int = 8) -> Any:
    """Measure, print a table and write JSON where asked. Raises TreadleError."""
    machines = Machines("cpu", (tuple(usable_cores()),))
    if len(machines.devices[0]) < 2:
        raise PlacementError("treadle bench plan: roles get cores of their own, and this process may use one core")
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe, given = _RECIPE[task]
        given = (*given, f"iterations={iterations}", f"output={folder}", *_EVALUATION, *_base(task, folder), *overrides)
        rows = _rows(recipe, given, WAYS[task], folder, machines, console)
        if task == "tabletop":
            grpo = (*given, "simulator.slots=64", *_GRPO_STREAM)
            ways = {_STREAM: (*_SPLIT, *_crew(1, 1))}
            rows |= _rows("quickstart-grpo", grpo, ways, folder, machines, console)
    table = make_table(f"Seconds of an iteration: {task}", ["way"], ["predicted", "measured", "error"])
    for way, row in rows.items():
        table.add_row(way, f"{row['predicted']:.2f}", f"{row['measured']:.2f}", f"{row['error']:+.0%}")
    console.print(table)
    worst = max(abs(row["error"]) for row in rows.values())
    return write_record(json, "plan", {"task": task, "iterations": iterations, "ways": rows, "worst_error": worst})


def _base(task: Task, folder: Path) -> tuple[str, ...]:
    """Settings that name the base that is trained from, made where none ships."""
    if task not in _BASE:
        return ()
    recipe, *settings = _BASE[task]
    _treadle("sft", recipe, "name=base", f"output={folder}", *settings)
    return (f"policy.checkpoint={folder / 'base' / 'policy'}",)


def _rows(
    recipe: str,
    given: Sequence[str],
    ways: Mapping[str, tuple[str, ...]],
    folder: Path,
    machines: Machines,
    console: Console,
) -> dict[str, dict[str, Any]]:
    """What is predicted and measured of each way, with one profile of the recipe."""
    file = folder / f"{recipe}.json"
    began = time.perf_counter()
    profile = measure_profile(load_recipe(recipe, given, TrainConfig), machines, (1, 2), console.print)
    console.print(f"profile of {recipe}: {time.perf_counter() - began:.0f} s")
    write_profile(file, profile)
    rows: dict[str, dict[str, Any]] = {}
    for number, (way, settings) in enumerate(ways.items()):
        name = f"{recipe}-{number}"
        _treadle("train", recipe, *given, *settings, f"name={name}", f"runtime.profile={file}")
        done = read_run(folder / name)
        rows[way] = {"settings": list(settings), **_row(done)}
        console.print(f"{way}: {rows[way]['predicted']:.2f} s predicted, {rows[way]['measured']:.2f} s measured")
    rows[next(iter(ways))]["profile"] = plain(profile)
    return rows


def _row(done: RunFolder) -> dict[str, Any]:
    assert done.prediction is not None
    seconds = list(done.series("time/iteration"))
    measured = measured_seconds(seconds)
    assert measured is not None
    predicted = float(done.prediction["seconds"])
    return {"predicted": predicted, "measured": measured, "error": predicted / measured - 1, "iterations": seconds}


def _treadle(*arguments: str) -> None:
    command = [sys.executable, "-m", "treadle.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LONG_WAIT)
    if done.returncode:
        raise TreadleError(f"treadle {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
