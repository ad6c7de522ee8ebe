"""The report of a run: one HTML file that holds everything it shows."""

import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from treadle.config.run_directory import flatten
from treadle.config.schema import TrainConfig
from treadle.files import to_json, write_atomically
from treadle.reporting.curves import health_curves, idle_table, learning_curves, metrics_table, role_bar
from treadle.reporting.evaluation_table import evaluation_table
from treadle.reporting.folder import RunFolder, read_run
from treadle.reporting.page import fill, film, frame, missing, pairs
from treadle.reporting.prediction import predicted_line
from treadle.reporting.summary import suite_name
from treadle.reporting.tables import interval, percent
from treadle.reporting.timeline import timeline_svg

REPORT_FILE = "report.html"


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not, and return its path.

    Raises OutputError where it is not the folder of a run, a file of it cannot be read, or the page cannot be written.
    """
    run = read_run(run_dir)
    header = f'<p class="status">{_status(run)}</p>\n<p class="facts">{_facts(run)}</p>'
    body = fill(
        "report.html",
        lanes=_lanes(run),
        headline=_headline(run),
        tiles=_tiles(run),
        evaluation=evaluation_table(run.base, run.final),
        videos=_videos(run),
        warnings=_warnings(run),
        curves=learning_curves(run) if run.metrics else missing("No iteration has ended yet."),
        roles=role_bar(run),
        idle=idle_table(run) + predicted_line(run),
        timeline=timeline_svg(run.trace),
        stages=pairs(
            {stage.replace("_", " "): f"{seconds:,.1f} s" for stage, seconds in _summary(run, "seconds", {}).items()}
        ),
        health=health_curves(run) if run.metrics else missing("No iteration has ended yet."),
        metrics=metrics_table(run) if run.metrics else missing("No iteration has ended yet."),
        machine=_machine(run),
        command=escape(reproduce_command(run)),
        changed=_changed(run.config),
        config=escape(to_json(run.config)),
        raw=escape(to_json({"summary": run.summary, "evaluation": {"base": run.base, "final": run.final}})),
    )
    path = run_dir / REPORT_FILE
    write_atomically(path, frame(run.name, header, body))
    return path


def reproduce_command(run: RunFolder) -> str:
    """The command that does the run again: its resolved configuration is a recipe; only the name must be new."""
    return shlex.join(["treadle", "train", str(run.path / "config.json"), f"name={run.name}-again"])


def _status(run: RunFolder) -> str:
    planned = run.config.get("iterations")
    of_planned = f" of {escape(str(planned))}" if planned else ""
    if run.summary is not None and run.final is not None:
        return f'<span class="pill done">finished</span> {run.iterations}{of_planned} iterations'
    waits = [text for text, there in (("final evaluation", run.final), ("summary", run.summary)) if there is None]
    return (
        f'<span class="pill">unfinished</span> {run.iterations}{of_planned} iterations; no {" and no ".join(waits)} '
        "yet. <code>treadle report</code> makes this page again."
    )


def _headline(run: RunFolder) -> str:
    base, final = (_in_distribution(run, label, found) for label, found in (("base", run.base), ("final", run.final)))
    if base is None and final is None:
        return missing("Not evaluated yet: success before and after training will stand here.")
    numbers = "".join(_big(label, result) for label, result in (("base", base), ("final", final)))
    episodes = next(result["episodes"] for result in (final, base) if result)
    held_out = all(found.get("held_out", True) for found in (run.base, run.final) if found)
    which = "that training never saw" if held_out else "that training plays too, as in published work on them"
    return (
        f'<div class="headline">{numbers}</div><p class="note">Success in distribution on {episodes:,} scenarios '
        f"{which}; below each number its 95&nbsp;% interval, in percent.{_preflight(run)}</p>"
    )


def _preflight(run: RunFolder) -> str:
    """What the run tried before its first update."""
    if run.preflight is None:
        return ""
    still, chosen = run.preflight["still"], run.preflight["temperature"]
    tried = "".join(f", {percent(t['success'])} at temperature {t['temperature']:g}" for t in run.preflight["trials"])
    return (
        f" Before the first update, of {still['episodes']:,} training scenarios as rollouts play them: "
        f"{percent(still['success'])} without exploration{tried}. It was trained at temperature {chosen:g}."
    )


def _facts(run: RunFolder) -> str:
    """What was trained where, when, and by which command."""
    settings, machine = flatten(run.config), run.machine or {}
    tasks = (settings.get(f"simulator.options.{key}") for key in ("task", "tasks", "suite"))
    task = next((f", {to_json(task, None)}" for task in tasks if task), "").replace('"', "")
    where = f"{settings.get('simulator.name', 'a simulator')}{task}"
    facts = [f"{settings.get('policy.checkpoint', 'a policy')} on {where}"]
    facts += [str(machine["began"]).replace("T", " ").removesuffix("+00:00") + " UTC"] if "began" in machine else []
    command = f" · <code>{escape(str(machine['command']))}</code>" if "command" in machine else ""
    return " · ".join(map(escape, facts)) + command


def _lanes(run: RunFolder) -> str:
    """The caption of the timeline."""
    events = (run.trace or {}).get("traceEvents", ())
    lanes = {lane for event in events for lane in event.get("args", {}).get("lanes", ())}
    if len(lanes) > 1:
        return "Bars are coloured by lane: while one lane is simulated, the policy decides for another."
    return "One lane: simulator and policy take turns."


def _big(label: str, result: Mapping[str, Any] | None) -> str:
    value = percent(result["success"]) if result else "not yet"
    below = interval(result["ci95"]) if result else "evaluation missing"
    return f'<div class="{label}"><span>{label}</span><strong>{value}</strong><small>{below}</small></div>'


def _in_distribution(run: RunFolder, which: str, evaluation: dict[str, Any] | None) -> Mapping[str, Any] | None:
    if evaluation and "train" in evaluation["suites"]:
        return evaluation["suites"]["train"]
    return _summary(run, which, {}).get(suite_name("train"))


def _tiles(run: RunFolder) -> str:
    stages = _summary(run, "seconds", {})
    steps = _summary(run, "env_steps", sum(row.get("rollout/control_steps", 0) for row in run.metrics))
    tiles: dict[str, str] = {}
    if stages:
        tiles["minutes, all stages"] = f"{sum(stages.values()) / 60:.1f}"
    if run.metrics:
        tiles["minutes of training"] = f"{run.metrics[-1].get('seconds', 0.0) / 60:.1f}"
    tiles["control steps played"] = f"{steps:,.0f}"
    if (speed := _summary(run, "control_steps_per_second", None)) is not None:
        tiles["control steps per second"] = f"{speed:,.0f}"
    if (memory := _summary(run, "peak_rss_mb", None)) is not None:
        tiles["MB of memory at most"] = f"{memory:,.0f}"
    if cards := _summary(run, "peak_gpu_mb", None):
        tiles["MB of GPU memory at most"] = f"{cards:,.0f}"
    seed = _summary(run, "seed", run.config.get("seed"))
    if seed is not None:
        tiles["seed"] = str(seed)
    return "".join(f"<div><strong>{escape(value)}</strong><span>{label}</span></div>" for label, value in tiles.items())


def _videos(run: RunFolder) -> str:
    figures: list[str] = []
    for entry in sorted(run.videos, key=_interest):
        title = f"{escape(str(entry['instruction']))}<small>{escape(str(entry['scenario']))}</small>"
        pair = film(run.path / "videos", str(entry["pair"])) if entry.get("pair") else None
        films = "".join(_film(run, label, entry.get(label)) for label in ("base", "final"))
        figures.append(f'<figure class="pair"><figcaption>{title}</figcaption>{pair or f"<div>{films}</div>"}</figure>')
    return f'<div class="pairs">{"".join(figures)}</div>' if figures else missing("This run has no videos yet.")


def _interest(entry: Mapping[str, Any]) -> int:
    """Failures that became successes first, what fails still last."""
    base, final = (entry.get(label) or {} for label in ("base", "final"))
    return 0 if final.get("success") and not base.get("success") else 1 if final.get("success") else 2


def _film(run: RunFolder, label: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return f'<div><span class="outcome">{label}</span>{missing("Not filmed yet.")}</div>'
    outcome, kind = ("success", "good") if entry["success"] else ("failure", "bad")
    length = escape(str(entry["length"]))
    caption = f'<span class="outcome"><b>{label}</b> <i class="{kind}">{outcome}</i> {length} steps</span>'
    video = film(run.path / "videos", str(entry["file"]))
    name = Path(str(entry["file"])).name
    return f"<div>{video or missing(f'{name} is missing.')}{caption}</div>"


def _warnings(run: RunFolder) -> str:
    if not run.warnings:
        return missing("Nothing was warned of.")
    return f"<ul>{''.join(f'<li>{escape(warning)}</li>' for warning in run.warnings)}</ul>"


def _machine(run: RunFolder) -> str:
    machine = dict(run.machine or {})
    versions = {**machine.pop("versions", {}), **_summary(run, "versions", {})}
    if "memory_gb" in machine:
        machine["memory"] = f"{machine.pop('memory_gb')} GiB"
    return pairs({**machine, **versions})


def _changed(config: Mapping[str, Any]) -> str:
    defaults = flatten(TrainConfig().model_dump(mode="json"))
    changed = {key: to_json(value, None) for key, value in flatten(config).items() if defaults.get(key) != value}
    return pairs(changed) if changed else "<p>Every setting has its default.</p>"


def _summary(run: RunFolder, key: str, default: Any) -> Any:
    return run.summary.get(key, default) if run.summary is not None else default
