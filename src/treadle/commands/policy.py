"""`treadle policy inspect`: what a checkpoint directory holds, what it needs, and the commands that come next."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from treadle.commands.results import format_bytes, format_count
from treadle.config.checkpoints import CHECKPOINTS
from treadle.config.describe import toml_text
from treadle.config.loading import configure
from treadle.config.recipes import Recipe, read_recipes
from treadle.config.run_directory import flatten
from treadle.config.schema import SimulatorConfig, TrainConfig
from treadle.errors import CheckpointError, ConfigError
from treadle.policies.footprint import USES
from treadle.policies.inspection import LORA_RANK, CheckpointContents
from treadle.policies.load import policy_class
from treadle.simulators.build import installed_simulators

SHOWN = 3
"""How many tensors of a kind are named."""
UNKNOWN = "NAME"
"""Stands for a simulator that no recipe and no name tells."""
_STATISTICS = "policy.statistics="
_TITLES = {"lora": f"LoRA of rank {LORA_RANK}", "full": "full fine-tuning"}


def fitting_recipes(contents: CheckpointContents, settings: Sequence[str] = ()) -> list[str]:
    """Recipes of reinforcement learning that a checkpoint can be given to, those for the fewest graphics cards first.
    `settings` say how the directory is read, as key=value.
    """
    return [recipe.name for recipe, _ in _fitting(contents, settings)]


def _fitting(contents: CheckpointContents, settings: Sequence[str]) -> list[tuple[Recipe, TrainConfig]]:
    fitting: list[tuple[Recipe, TrainConfig]] = []
    for recipe in read_recipes():
        if not _fits(contents, settings, recipe):
            continue
        try:
            fitting.append((recipe, configure(recipe)))
        except ConfigError:
            continue  # A supervised recipe.
    return sorted(fitting, key=lambda pair: pair[0].about.devices or 0)


def _fits(contents: CheckpointContents, settings: Sequence[str], recipe: Recipe) -> bool:
    """Whether the recipe's simulator takes actions of one of the statistics, those that were chosen if any, and the
    checkpoint has what the recipe says of its own. A policy without statistics fits recipes that name its kind.
    """
    if any(contents.settings.get(name) != value for name, value in recipe.about.facts.items()):
        return False
    kind = recipe.stated("policy", "kind")
    if not contents.statistics:
        return kind == contents.policy
    wanted = recipe.stated("policy", "statistics") or recipe.stated("simulator", "name") or SimulatorConfig().name
    chosen = [setting.partition("=")[2] for setting in settings if setting.startswith(_STATISTICS)]
    names = policy_class(contents.policy).statistics_names
    there = contents.statistics if not chosen else names(chosen[-1])
    return kind in (None, contents.policy) and any(name in there for name in names(wanted))


def next_commands(contents: CheckpointContents, settings: Sequence[str] = ()) -> list[str]:
    """What to run next: an evaluation of each fitting recipe, by its protocol where it has one, and their trainings.

    Where no recipe fits, an evaluation for each of the statistics, in the simulator whose name they begin with, or
    NAME. `settings` say how the directory is read, as key=value.
    """
    directory = contents.directory
    folder = directory.name if directory.parent == CHECKPOINTS else shlex.quote(str(directory))
    fitting = _fitting(contents, settings)
    evaluations: list[str] = []
    trainings: list[str] = []
    for recipe, config in fitting:
        named = config.policy.statistics is not None
        keys = [*settings] if named else _statistics(contents, config.simulator.name, settings)
        evaluation = " ".join(map(shlex.quote, [*_evaluated(recipe, config), *keys]))
        evaluations.append(f"treadle eval {folder} {evaluation}")
        trainings.append(" ".join([f"treadle train {recipe.name} policy.checkpoint={folder}", *map(shlex.quote, keys)]))
    if not fitting:
        for key in sorted(contents.statistics) or [""]:
            named = next((name for name in installed_simulators() if key.startswith(name)), UNKNOWN)
            given = [f"simulator.name={named}", *_statistics(contents, key, settings)]
            evaluations.append(f"treadle eval {folder} {' '.join(map(shlex.quote, given))}")
    return list(dict.fromkeys([*evaluations, *trainings]))


def _evaluated(recipe: Recipe, config: TrainConfig) -> list[str]:
    """The words of an evaluation as the recipe has it: its protocol and what it states beside it of policy and
    evaluation; without a protocol, its simulator and how the policy is read.
    """
    if recipe.protocol is not None:
        policy = {key: x for key, x in recipe.own.get("policy", {}).items() if key in ("statistics", "options")}
        stated = flatten({"policy": policy, "evaluation": recipe.own.get("evaluation", {})})
        return ["--protocol", recipe.protocol, *(f"{key}={_value(x)}" for key, x in stated.items() if x != {})]
    simulator = config.simulator
    given = [f"simulator.name={simulator.name}", f"simulator.horizon={simulator.horizon}"]
    options = {"simulator": simulator.options, "policy": config.policy.options}
    given += [f"{part}.options.{key}={_value(x)}" for part, found in options.items() for key, x in found.items()]
    return ["--suite", config.evaluation.suites[0], *given]


def _statistics(contents: CheckpointContents, wanted: str, settings: Sequence[str]) -> list[str]:
    """How the directory is read: what was set, and the statistics where there are several."""
    chosen = any(setting.startswith(_STATISTICS) for setting in settings)
    return [*settings, *([f"{_STATISTICS}{wanted}"] if len(contents.statistics) > 1 and not chosen else [])]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else toml_text(value)


def contents_report(contents: CheckpointContents, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        **asdict(contents),
        "recipes": fitting_recipes(contents, settings),
        "commands": next_commands(contents, settings),
    }


def check_finite(contents: CheckpointContents) -> None:
    """Raises CheckpointError where weights are NaN or infinite."""
    if contents.not_finite:
        tensor, count = next(iter(contents.not_finite.items()))
        raise CheckpointError(
            f"{contents.directory}: {len(contents.not_finite)} tensors with numbers that are not finite, such as "
            f"{count} in {tensor}; it loads, and acts on NaN. Take an earlier checkpoint"
        )


def show_contents(console: Console, contents: CheckpointContents, settings: Sequence[str] = ()) -> None:
    """The same for people. Nothing is cut: tables wrap, and each command is one line that can be copied."""
    total = format_count(sum(contents.parameters.values()))
    console.print(Text.assemble((contents.policy, "bold"), f", {total} parameters, {contents.dtype}"))
    console.print(Text(str(contents.directory), "dim"), soft_wrap=True)
    for title, body in (
        ("Policy", _facts(contents)),
        ("Weights", _weights(contents)),
        ("Memory", _memory(contents)),
        ("Note", _notes(contents)),
    ):
        if body is not None:
            console.print(Text(f"\n{title}", "bold"))
            console.print(Padding(body, (0, 0, 0, 2)))
    console.print(Text("\nNext", "bold"))
    commands = next_commands(contents, settings)
    for command in commands:
        console.print(Text(f"  {command}"), soft_wrap=True)
    if any(f"simulator.name={UNKNOWN}" in command for command in commands):
        hint = f"{UNKNOWN}: a simulator that `treadle simulators list` shows"
        console.print(Padding(Text(hint, "dim"), (0, 0, 0, 2)))


def _facts(contents: CheckpointContents) -> RenderableType:
    table = _pairs()
    for title, text in contents.descriptions.items():
        table.add_row(title, text)
    keys = [f"{key} ({dimensions} dimensions)" for key, dimensions in sorted(contents.statistics.items())]
    table.add_row("statistics", "\n".join(keys) or "none")
    if len(keys) > 1:
        table.add_row("", Text("choose one by policy.statistics", "dim"))
    return table


def _weights(contents: CheckpointContents) -> RenderableType:
    table = _pairs()
    files = "one file" if contents.files == 1 else f"{contents.files} files"
    types = ", ".join(f"{count} {dtype}" for dtype, count in contents.types.items())
    table.add_row("main weights", f"{types} tensors, {format_bytes(contents.stored_bytes)} in {files}")
    if contents.part_types:
        table.add_row("in own files", "\n".join(f"{file}, {dtype}" for file, dtype in contents.part_types.items()))
    if contents.adapter is not None:
        table.add_row("adapter", f"{contents.adapter}, apart from its base; merged when it is loaded to act")
    parts = ", ".join(f"{part} {format_count(count)}" for part, count in contents.parameters.items())
    table.add_row("parameters", parts)
    bad = list(contents.not_finite.items())
    if not bad:
        table.add_row("numbers", Text("all finite", "green"))
    for name, count in bad[:SHOWN]:
        table.add_row("not finite", Text(f"{count} numbers of {name}", "red"))
    if len(bad) > SHOWN:
        table.add_row("", Text(f"and {len(bad) - SHOWN} tensors more", "red"))
    return table


def _memory(contents: CheckpointContents) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    ways = [("acting", contents.memory_bytes.acting, {"weights": contents.memory_bytes.acting})]
    ways += [(_TITLES[way], sum(parts.values()), parts) for way, parts in contents.training_bytes.items()]
    for title, _, _ in ways:
        table.add_column(title, justify="right", overflow="fold")
    for use in USES:
        if any(parts.get(use) for _, _, parts in ways):
            table.add_row(use, *(format_bytes(parts[use]) if parts.get(use) else "" for _, _, parts in ways))
    table.add_row("in all", *(format_bytes(size) for _, size, _ in ways), style="bold")
    further = contents.memory_bytes.further_sample
    if further is None:
        return table
    said = f"Each further sample of a micro-batch takes {format_bytes(further)} more, with gradient checkpointing."
    return Group(table, Text(said, "dim"))


def _notes(contents: CheckpointContents) -> RenderableType | None:
    """What is not used, warnings first."""
    remarks = sorted(contents.remarks, key=lambda remark: not remark.warning)
    if not remarks:
        return None
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(overflow="fold")
    for remark in remarks:
        table.add_row(Text("!", "bold yellow") if remark.warning else "-", remark.text)
    return table


def _pairs() -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", overflow="fold")
    table.add_column(overflow="fold")
    return table
