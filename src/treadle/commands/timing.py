"""`treadle plan --time`: what an iteration will take, in the ways that a recipe can be run."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from treadle.config.schema import TrainConfig
from treadle.runtime.placement import CPU, Machines, Placement, place
from treadle.runtime.planning.candidates import Candidate, as_configured, candidates, recommend
from treadle.runtime.planning.measure import measure_profile
from treadle.runtime.planning.profile import Profile, read_profile, write_profile
from treadle.runtime.planning.timeline import Timeline

_SHOWN = 12
"""Rows of the table."""
_WIDTH = 72
"""Characters of the picture."""
_MARKS = {"simulate": "s", "generate": "g", "train": "T"}


@dataclass(frozen=True, slots=True)
class TimePlan:
    """Ways to run a recipe, the fastest first."""

    profile: Profile
    configured: Candidate
    """The recipe as it is."""
    found: list[Candidate]
    best: Candidate
    seconds: float
    """That planning took, without measuring."""

    def report(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "profile": self.profile.source,
            "assumptions": list(self.profile.assumptions),
            "planning_seconds": self.seconds,
            "configured": _plain(self.configured),
            "recommended": _plain(self.best),
            "candidates": [_plain(candidate) for candidate in self.found],
        }


def plan_time(
    config: TrainConfig, machines: Machines, profile: Path | None, save: Path | None, console: Console
) -> TimePlan:
    """Plan from a stored profile, or from one that is measured here.

    Raises:
        TreadleError: A mistake that the user can mend.
    """
    if profile is None:
        count = len(machines.devices[0]) if machines.kind == CPU else 1
        counts = sorted({1, count // 2 or 1, count})
        known = measure_profile(config, machines, counts, lambda said: console.print(Text(said, "dim")))
    else:
        known = read_profile(profile)
    if save is not None:
        write_profile(save, known)
    began = time.perf_counter()
    configured = as_configured(config, place(config, machines), known)
    found = candidates(config, machines, known)
    return TimePlan(known, configured, found, recommend(found), time.perf_counter() - began)


def show_time_plan(console: Console, plan: TimePlan) -> None:
    """For people: a table, a picture of the recommended way, and what bounds it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Seconds of an iteration, predicted", title_justify="left")
    for name, justify in (("placement", "left"), ("lanes", "right"), ("overlap", "left"), ("seconds", "right")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType] (it is one of the two)
    table.add_column("busiest", justify="left")
    shown = plan.found[:_SHOWN]
    rows = shown if plan.best in shown else [*shown, plan.best]
    for candidate in rows:
        role, share = candidate.bound
        style = "green" if candidate is plan.best else ""
        table.add_row(
            _placed(candidate.placement),
            str(candidate.lanes),
            candidate.config.overlap,
            f"{candidate.seconds:.3g}",
            f"{role}, {share:.0%}",
            style=style,
        )
    console.print(table)
    console.print(Text(picture(plan.best.timeline)), soft_wrap=True, highlight=False)
    role, share = plan.best.bound
    gain = plan.configured.seconds / plan.best.seconds
    console.print(
        Text.assemble(
            ("\nRecommended: ", "bold"),
            f"{' '.join(plan.best.overrides)}\n{plan.best.seconds:.3g} s an iteration, {gain:.2f} times as fast as the "
            f"recipe as it is ({plan.configured.seconds:.3g} s); bound by {role}, whose devices are busy with it for "
            f"{share:.0%} of the time",
        ),
        soft_wrap=True,
    )
    if plan.best.config.overlap == "async":
        console.print(Text("Its rollouts are played by older weights; see max_staleness.", "yellow"))
    console.print(Text(f"Profile: {plan.profile.source}", "dim"), soft_wrap=True)
    for assumption in plan.profile.assumptions:
        console.print(Text(f"  {assumption}", "dim"), soft_wrap=True)


def picture(timeline: Timeline) -> str:
    """Two iterations, a row for each device: s simulating, g generating, T training."""
    first, last = timeline.published[-3], timeline.published[-1]
    bars = [bar for bar in timeline.bars if bar.ended > first and bar.began < last]
    devices = sorted({device for bar in bars for device in bar.devices})
    rows: list[str] = []
    for device in devices:
        marks = [" "] * _WIDTH
        for bar in bars:
            if device in bar.devices:
                left = max(0, round((bar.began - first) / (last - first) * _WIDTH))
                right = min(_WIDTH, max(left + 1, round((bar.ended - first) / (last - first) * _WIDTH)))
                marks[left:right] = _MARKS[bar.role] * max(0, right - left)
        kind, node, number = device
        rows.append(f"{kind} {node}:{number}  {''.join(marks[:_WIDTH])}")
    return "\n".join([*rows, f"{'':12}two iterations of {(last - first) / 2:.3g} s; s simulate, g generate, T train"])


def _placed(placement: Placement) -> str:
    players, ranks = len(placement.players), len(placement.ranks)
    return f"{placement.mode}, {players} player{'s' * (players != 1)}, {ranks} rank{'s' * (ranks != 1)}"


def _plain(candidate: Candidate) -> dict[str, Any]:
    return {
        "mode": candidate.placement.mode,
        "players": len(candidate.placement.players),
        "ranks": len(candidate.placement.ranks),
        "lanes": candidate.lanes,
        "overlap": candidate.config.overlap,
        "seconds": candidate.seconds,
        "busy": candidate.timeline.busy(),
        "overrides": candidate.overrides,
    }
