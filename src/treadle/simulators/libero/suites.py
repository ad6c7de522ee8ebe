"""Suites, tasks and the enumeration of scenarios.

A scenario is a task and one of its initial states. Scenarios of a suite go through all tasks before the next state, so
that any first part of an enumeration has all of them.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario, Split
from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.checks import check_option, check_suite
from treadle.simulators.enumeration import Enumeration
from treadle.simulators.libero.distribution import Distribution

NAME = "libero"
States = Literal["disjoint", "published"]

STANDARD = {key: f"libero_{key}" for key in ("spatial", "object", "goal", "10", "90")}
"""Suites of LIBERO, by our name."""
_FIRST_NUMBER = {"spatial": 0, "object": 10, "goal": 20, "10": 30, "90": 40}
"""Number of each suite's first task, of the 130; a variant's tasks have the numbers of those that they vary."""
UNIFIED = "130"
"""All of them as one."""
VARIANTS = {
    "vision/{}-object": "{}_object",
    "semantic/{}-language": "{}_lan",
    "semantic/{}-task": "{}_task",
    "execution/{}-swap": "{}_swap",
}
"""Suites of LIBERO-PRO, from ours to their names: objects that look otherwise, instructions worded otherwise, other
goals in the same scene, objects in each other's place."""
PUBLISHED = STANDARD | {
    ours.format(base): theirs.format(name) for base, name in STANDARD.items() for ours, theirs in VARIANTS.items()
}
"""LIBERO's name of each concrete suite: `libero_object_lan` of `semantic/object-language`."""
AXES = ("vision", "semantic", "execution")
STATE_COUNT = 50
"""Initial states of each task."""
TRAINING_STATES = 40
"""Of them, those of the training split, where splits are disjoint; the rest are for evaluation."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task."""

    suite: str
    """The concrete suite that it is of, in our name."""
    number: int
    """Its number among the 130 tasks, or that of the task that it varies."""
    name: str
    instruction: str
    description: Path
    """Its .bddl file."""
    states: Path
    """Its initial states, as a .npz file with an array `states` [50, S]."""


class Suites:
    """All suites that a distribution has; `train` is `suite`, and the axes are made of that suite's variants."""

    def __init__(self, distribution: Distribution, suite: str, tasks: Sequence[int], states: States) -> None:
        """`tasks` keeps these tasks of `suite` and its variants, by their index; empty keeps all.

        Raises ConfigError for what there is not.
        """
        self._distribution = distribution
        self._states: States = states
        check_option("suite", suite, (*STANDARD, UNIFIED))
        check_option("states", states, ("disjoint", "published"))
        self._base = tuple(STANDARD) if suite == UNIFIED else (suite,)
        self._train = [task for base in self._base for task in self._tasks(base)]
        self._kept = tuple(tasks)
        if unknown := [index for index in self._kept if not 0 <= index < len(self._train)]:
            raise ConfigError(
                f"libero: option tasks: found {unknown[0]}; suite {suite!r} has tasks 0 to {len(self._train) - 1}"
            )
        if tasks and suite == UNIFIED:
            raise ConfigError(f"libero: option tasks is for a suite of its own; found it with suite {UNIFIED!r}")

    def names(self) -> tuple[str, ...]:
        """`train`, the standard suites and all of them as one, then what is out of distribution."""
        settings = self._settings(STANDARD)
        axes = [axis for axis in AXES if self._axis(axis)]
        return ("train", *STANDARD, UNIFIED, *settings, *axes)

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """Tasks times initial states, lazily. Raises ConfigError for an unknown suite."""
        check_suite(NAME, suite, split, self.names())
        if suite == "train":
            tasks = self._chosen(self._train)
        elif suite == UNIFIED:
            tasks = [task for base in STANDARD for task in self._tasks(base)]
        elif suite in AXES:
            parts = [self._chosen(self._tasks(setting)) for setting in self._axis(suite)]
            tasks = [task for together in zip(*parts, strict=True) for task in together]
        else:
            tasks = self._tasks(suite)
        both = range(STATE_COUNT)
        own = both[:TRAINING_STATES] if split == "train" else both[TRAINING_STATES:]
        states = both if self._states == "published" else own

        def make(place: int) -> Scenario:
            state, task = divmod(place, len(tasks))
            chosen = tasks[task]
            index = chosen.number * 100 + states[state]
            return Scenario(NAME, chosen.suite, chosen.name, split, index, chosen.instruction)

        return Enumeration(len(tasks) * len(states), make)

    def task(self, scenario: Scenario) -> Task:
        """The task of a scenario. Raises SimulatorError for one that is not of these suites."""
        if scenario.simulator == NAME and scenario.suite in (*STANDARD, *self._settings(STANDARD)):
            for task in self._tasks(scenario.suite):
                if task.number == scenario.index // 100 and state_of(scenario) < STATE_COUNT:
                    return task
        raise SimulatorError(f"libero cannot play scenario {scenario.id} ({scenario.task}); take one of scenarios()")

    def place_of(self, task: Task) -> tuple[int, int]:
        """Index of a task in its suite, and how many tasks that has."""
        return task.number - _FIRST_NUMBER[base_of(task.suite)], len(self._tasks(task.suite))

    def alternatives(self, scenario: Scenario) -> list[str]:
        """The scenario's instruction, and those of its suite whose objects are all in its scene."""
        scene = scene_of(self.task(scenario).description)[0]
        others = [task for task in self._tasks(scenario.suite) if task.instruction != scenario.instruction]
        fitting = [task.instruction for task in others if scene_of(task.description)[1] <= scene]
        return list(dict.fromkeys([scenario.instruction, *fitting]))

    def all_instructions(self) -> list[str]:
        """Of all suites."""
        suites = (*STANDARD, *self._settings(STANDARD))
        return list(dict.fromkeys(task.instruction for suite in suites for task in self._tasks(suite)))

    def _settings(self, bases: Collection[str]) -> list[str]:
        """The variants of these suites that the distribution has."""
        known = self._distribution
        return [
            ours
            for ours, theirs in PUBLISHED.items()
            if ours not in STANDARD
            and base_of(ours) in bases
            and theirs in known.tasks
            and (known.descriptions / theirs).is_dir()
        ]

    def _axis(self, axis: str) -> list[str]:
        return [name for name in self._settings(self._base) if name.startswith(f"{axis}/")]

    def _chosen(self, tasks: Sequence[Task]) -> list[Task]:
        return [tasks[index] for index in self._kept or range(len(tasks))]

    def _tasks(self, suite: str) -> tuple[Task, ...]:
        known = self._distribution
        return _tasks_of(known.descriptions, known.states, suite, tuple(known.tasks[PUBLISHED[suite]]))


def state_of(scenario: Scenario) -> int:
    """Which initial state a scenario starts from: the last two digits of its index, after the task's number."""
    return scenario.index % 100


def base_of(suite: str) -> str:
    """The standard suite that a concrete suite is or varies: `object` of `semantic/object-language`."""
    return suite.rpartition("/")[2].partition("-")[0]


def read_states(task: Task) -> NDArray[np.float64]:
    """Initial states [50, 1 + positions + velocities] of a task. Raises SimulatorError, naming the file."""
    if not task.states.is_file():
        raise SimulatorError(f"libero: task {task.name} of suite {task.suite} has no initial states: {task.states}")
    with np.load(task.states, allow_pickle=False) as file:
        return file["states"].astype(np.float64)


@cache
def scene_of(description: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Names of what is in a task's scene, and of what the task is about, from its .bddl file."""
    text = description.read_text()
    declared = " ".join(_section(text, name) for name in ("fixtures", "objects"))
    names = re.findall(r"([\w ]+?) - \w+", re.sub(r"\s+", " ", declared))
    scene = frozenset(name for group in names for name in group.split())
    return scene, frozenset(name for name in _section(text, "obj_of_interest").split() if name in scene)


@cache
def _tasks_of(descriptions: Path, states: Path, suite: str, names: tuple[str, ...]) -> tuple[Task, ...]:
    theirs = PUBLISHED[suite]
    return tuple(
        Task(
            suite,
            _FIRST_NUMBER[base_of(suite)] + place,
            name,
            _instruction(descriptions, suite, name),
            descriptions / theirs / f"{name}.bddl",
            states / theirs / f"{name}.pruned_init.npz",
        )
        for place, name in enumerate(names)
    )


def _instruction(descriptions: Path, suite: str, name: str) -> str:
    """As in the published work: the name of the task, in words. A variant that words its task otherwise than the
    standard suite does has its own wording.
    """
    plain = re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")
    if suite in STANDARD:
        return plain
    folders = (PUBLISHED[suite], STANDARD[base_of(suite)])
    own, standard = (_wording(descriptions / folder / f"{name}.bddl") for folder in folders)
    return plain if own == standard else own


def _wording(description: Path) -> str:
    return _section(description.read_text(), "language").strip() if description.is_file() else ""


def _section(text: str, name: str) -> str:
    """What stands in `(:name ...)`, which has no brackets inside."""
    found = re.search(rf"\(:{name}\s([^()]*)\)", text)
    return found.group(1) if found else ""
