"""`treadle policy inspect`: what a checkpoint directory holds, needs, and is good for."""

from collections.abc import Collection
from typing import Any

from rich import box
from rich.table import Table

from treadle.config.loading import load_recipe, recipes
from treadle.errors import ConfigError
from treadle.policies.inspection import LORA_RANK, Holdings

GB = 1e9


def fitting_recipes(kind: str, statistics: Collection[str]) -> list[str]:
    """Packaged recipes of reinforcement learning that a checkpoint can be given to: their simulator's actions are
    those of one of its statistics.
    """
    fitting = []
    for name in recipes():
        try:
            config = load_recipe(name)
        except ConfigError:
            continue  # A supervised recipe.
        wanted = config.policy.statistics or config.simulator.name
        there = any(key in statistics for key in (wanted, f"{wanted}_no_noops"))
        if there and config.policy.kind in (None, kind):
            fitting.append(name)
    return fitting


def holdings_report(holdings: Holdings) -> dict[str, Any]:
    """Everything as plain data, sizes in bytes."""
    memory = holdings.memory
    return {
        "directory": str(holdings.directory),
        "policy": holdings.kind,
        "settings": holdings.facts,
        "statistics": holdings.statistics,
        "parameters": holdings.parameters,
        "types": holdings.dtypes,
        "stored_bytes": holdings.stored,
        "files": holdings.shards,
        "adapter": None if holdings.adapter is None else str(holdings.adapter),
        "memory_bytes": {
            "acting": memory.acting,
            "lora": memory.lora,
            "full": memory.full,
            "further_sample": memory.sample,
        },
        "recipes": fitting_recipes(holdings.kind, holdings.statistics),
    }


def holdings_table(holdings: Holdings) -> Table:
    """The same for people."""
    facts, memory = holdings.facts, holdings.memory
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    total = sum(holdings.parameters.values())
    table.add_row("policy", f"{holdings.kind}, {_count(total)} parameters")
    table.add_row("parts", "\n".join(f"{part}: {_count(count)}" for part, count in holdings.parameters.items()))
    types = ", ".join(f"{count} {dtype}" for dtype, count in holdings.dtypes.items())
    table.add_row("weights", f"{types} tensors, {holdings.stored / GB:.3g} GB in {_files(holdings.shards)}")
    if holdings.adapter is not None:
        table.add_row("adapter", f"{holdings.adapter}, beside its base")
    table.add_row(
        "actions", f"{facts['chunk']} of {facts['action_dim']} dimensions, head: {facts.get('head', 'tokens')}"
    )
    state = facts["proprioception_dim"]
    table.add_row("proprioception", f"{state} numbers" if state else "none")
    if facts.get("film"):
        table.add_row("FiLM", "the instruction modulates the towers")
    keys = [f"{key} ({dimensions} dimensions)" for key, dimensions in sorted(holdings.statistics.items())]
    table.add_row("statistics", "\n".join(keys))
    table.add_row("memory, acting", f"{memory.acting / GB:.3g} GB")
    table.add_row(f"memory, LoRA of rank {LORA_RANK}", f"{memory.lora / GB:.3g} GB")
    table.add_row("memory, full fine-tuning", f"{memory.full / GB:.3g} GB")
    table.add_row("a further sample", f"{memory.sample / GB:.3g} GB with gradient checkpointing")
    fitting = fitting_recipes(holdings.kind, holdings.statistics)
    commands = [f"treadle train {name} policy.checkpoint={holdings.directory}" for name in fitting]
    table.add_row("recipes", "\n".join(commands) or "none that ships is for the robots of these statistics")
    return table


def _count(parameters: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)


def _files(count: int) -> str:
    return "one file" if count == 1 else f"{count} files"
