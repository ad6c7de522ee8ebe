"""Whether stored initial states come to rest where they were stored: a probe of a simulator's physics."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from treadle.config.schema import CollectionConfig, SimulatorConfig
from treadle.data.scenario import Scenario
from treadle.errors import ConfigError
from treadle.workers import queries
from treadle.workers.crew import Crew, require_suite
from treadle.workers.plan import plan_crew

SLIDES = 0.03
"""Metres along the ground; a task is flagged where a thing slides further in more than half of its states."""
MOVES = 0.01
"""Metres; tasks in which nothing slides further, in any state, are not listed."""


@dataclass(frozen=True, slots=True)
class TaskSettling:
    """How the states of a task come to rest."""

    suite: str
    task: str
    number: int
    """Of the task in its suite, from 0."""
    states: int
    thing: str
    """The one that slides furthest: by the median over states to a millimetre, then by a single state."""
    median: float
    """Metres that it slides; of an even number of states, the lower of the two in the middle."""
    largest: float
    """In one of the states."""
    slides: bool
    """Whether the median is above `SLIDES`."""

    @classmethod
    def of(cls, scenario: Scenario, number: int, moved: Sequence[dict[str, float]]) -> "TaskSettling":
        """From how far each thing slid in each state."""
        middles = {name: median_low(state[name] for state in moved) for name in moved[0]}
        furthest = {name: max(state[name] for state in moved) for name in moved[0]}
        thing = max(middles, key=lambda name: (round(middles[name], 3), furthest[name]))
        largest = furthest[thing]
        slides = middles[thing] > SLIDES
        return cls(scenario.suite, scenario.task, number, len(moved), thing, middles[thing], largest, slides)


def probe_settling(
    name: str, suites: Sequence[str], states: int, python: str | None, progress: Callable[[TaskSettling], None]
) -> dict[str, Any]:
    """Let at most `states` stored states of every task of some suites come to rest. `python` is another interpreter
    with the simulator's packages; `progress` hears of each task.

    Raises ConfigError where the simulator has no stored states, or no such suite.
    """
    config = SimulatorConfig(name=name, slots=1, python=python)
    with Crew(plan_crew(config, CollectionConfig(), accelerated=False)) as crew:
        physics: str | None = crew.call(queries.PHYSICS)
        if physics is None:
            raise ConfigError(f"simulator {name!r} has no stored states that come to rest: its class lacks `settling`")
        for suite in suites:
            require_suite(crew, "--suite", suite)
        tasks: list[TaskSettling] = []
        for suite in suites:
            numbers = Counter[str]()
            for scenarios in _by_task(crew, suite):
                chosen = _spread(scenarios, states)
                part = chosen[0].suite
                tasks.append(TaskSettling.of(chosen[0], numbers[part], crew.call(queries.SETTLING, chosen)))
                numbers[part] += 1
                progress(tasks[-1])
    return {"simulator": name, "physics": physics, "slides_metres": SLIDES, "tasks": [asdict(task) for task in tasks]}


def settling_table(report: dict[str, Any]) -> Table:
    """A line for each task in which something moves."""
    moving = [task for task in report["tasks"] if task["largest"] > MOVES]
    still = len(report["tasks"]) - len(moving)
    caption = f"{still} other tasks: nothing slides further than {MOVES * 100:g} cm in any state"
    table = Table(box=box.SIMPLE_HEAD, title=report["physics"], caption=caption)
    for column in ("suite", "number", "thing", "states", "median cm", "largest cm", ""):
        table.add_column(column, justify="left" if column in ("suite", "thing") else "right")
    for task in moving:
        figures = (str(task["states"]), f"{task['median'] * 100:.1f}", f"{task['largest'] * 100:.1f}")
        mark, style = ("slides", "bold") if task["slides"] else ("", "")
        table.add_row(escape(task["suite"]), str(task["number"]), escape(task["thing"]), *figures, mark, style=style)
    return table


def _by_task(crew: Crew, suite: str) -> Iterator[list[Scenario]]:
    """The scenarios of each task of a suite, those of both splits, without repeats, by index."""
    found: dict[tuple[str, str], dict[int, Scenario]] = {}
    for split in ("train", "evaluation"):
        for scenario in crew.scenarios(suite, split, 0, crew.count(suite, split)):
            found.setdefault((scenario.suite, scenario.task), {})[scenario.index] = scenario
    for scenarios in found.values():
        yield [scenarios[index] for index in sorted(scenarios)]


def _spread(scenarios: Sequence[Scenario], count: int) -> list[Scenario]:
    """At most `count` of them, evenly spread."""
    kept = min(count, len(scenarios))
    return [scenarios[i * len(scenarios) // kept] for i in range(kept)]
