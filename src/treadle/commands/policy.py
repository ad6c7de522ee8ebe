"""`treadle policy inspect`: what a checkpoint directory holds, needs, and is good for."""

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from treadle.config.loading import load_recipe, recipes
from treadle.errors import ConfigError
from treadle.policies.inspection import LORA_RANK, CheckpointContents

GB = 1e9


def fitting_recipes(kind: str, statistics: Collection[str]) -> list[str]:
    """Recipes of reinforcement learning that a checkpoint can be given to: their simulator's actions are those of one
    of its statistics. A policy without statistics fits recipes that name its kind.
    """
    fitting = []
    for name in recipes():
        try:
            config = load_recipe(name)
        except ConfigError:
            continue  # A supervised recipe.
        wanted = config.policy.statistics or config.simulator.name
        there = any(key in statistics for key in (wanted, f"{wanted}_no_noops"))
        if config.policy.kind == kind if not statistics else there and config.policy.kind in (None, kind):
            fitting.append(name)
    return fitting


def contents_report(contents: CheckpointContents) -> dict[str, Any]:
    """Everything as plain data."""
    return {**asdict(contents), "recipes": fitting_recipes(contents.policy, contents.statistics)}


def contents_table(contents: CheckpointContents) -> Table:
    """The same for people."""
    memory = contents.memory_bytes
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    total = sum(contents.parameters.values())
    table.add_row("policy", f"{contents.policy}, {_count(total)} parameters")
    table.add_row("parts", "\n".join(f"{part}: {_count(count)}" for part, count in contents.parameters.items()))
    files = "one file" if contents.files == 1 else f"{contents.files} files"
    types = ", ".join(f"{count} {dtype}" for dtype, count in contents.types.items())
    table.add_row("weights", f"{types} tensors, {contents.stored_bytes / GB:.3g} GB in {files}")
    if contents.adapter is not None:
        table.add_row("adapter", f"{contents.adapter}, beside its base")
    for title, text in contents.descriptions.items():
        table.add_row(title, text)
    keys = [f"{key} ({dimensions} dimensions)" for key, dimensions in sorted(contents.statistics.items())]
    table.add_row("statistics", "\n".join(keys) or "none")
    table.add_row("memory, acting", f"{memory.acting / GB:.3g} GB")
    if memory.lora is not None:
        table.add_row(f"memory, LoRA of rank {LORA_RANK}", f"{memory.lora / GB:.3g} GB")
    table.add_row("memory, full fine-tuning", f"{memory.full / GB:.3g} GB")
    if memory.further_sample is not None:
        table.add_row("a further sample", f"{memory.further_sample / GB:.3g} GB with gradient checkpointing")
    fitting = fitting_recipes(contents.policy, contents.statistics)
    commands = [f"treadle train {name} policy.checkpoint={contents.directory}" for name in fitting]
    table.add_row("recipes", "\n".join(commands) or "none that is installed is for the robots of these statistics")
    return table


def _count(parameters: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)
