"""`treadle plan`: the processes of a run and the memory of each, before it starts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from treadle.commands.results import format_bytes, format_count
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.recipes import About, Recipe
from treadle.config.schema import PolicyConfig, TrainConfig
from treadle.devices import choose_device
from treadle.errors import CheckpointError, ConfigError
from treadle.policies.footprint import USES
from treadle.policies.load import outline_policy, policy_class
from treadle.policies.protocol import Policy
from treadle.runtime.build import machine_of
from treadle.runtime.memory import TIGHT, Plan, ProcessMemory, advise
from treadle.runtime.placement import CPU, Machines, Placement, describe, place
from treadle.simulators.build import check_simulator

CARD_GB = 80.0
"""Of a graphics card that is not here, unless something else is said."""
_NOT_COUNTED = (
    "Counted are the tensors of the policy and of its training, for prompts of the longest kind. Not counted are "
    "simulators that render on the card, the CUDA context and gaps of its allocator: leave a tenth free."
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that has not started."""

    config: TrainConfig
    placement: Placement
    device_bytes: float
    """Of a device."""
    plan: Plan | None = None
    """Its memory, where asked for."""
    notes: tuple[str, ...] = ()
    """What is not here, and what was taken in its place."""
    elsewhere: bool = False
    """Its devices are not here."""

    @property
    def lines(self) -> list[str]:
        """Where each role is."""
        return describe(self.placement, self.config)

    def room(self, process: ProcessMemory) -> float:
        """Bytes that a process may use: a card is its own, host memory is shared by those of a machine."""
        if self.placement.machines.kind != CPU:
            return self.device_bytes
        return self.device_bytes / sum(other.node == process.place.node for other in self.placement.processes)

    @property
    def advice(self) -> list[str]:
        """What to change where something does not fit."""
        if self.plan is None:
            return []
        return advise(self.plan, self.config, self.placement, min(map(self.room, self.plan.processes)))

    def report(self) -> dict[str, Any]:
        """Everything as plain data; sizes in bytes."""
        found: dict[str, Any] = {
            "placement": self.lines, "notes": list(self.notes), "device_bytes": self.device_bytes
        }  # fmt: skip
        if self.plan is None:
            return found
        processes = [
            {
                "name": process.place.name,
                "machine": process.place.node,
                "play": dict(process.play),
                "train": dict(process.train),
                "peak_play": process.peaks[0],
                "peak_train": process.peaks[1],
                "fits": process.peak <= self.room(process),
            }
            for process in self.plan.processes
        ]
        counts = {"parameters": self.plan.total, "trained_parameters": self.plan.trained}
        return {**found, **counts, "processes": processes, "advice": self.advice}


def plan_run(
    config: TrainConfig,
    *,
    memory: bool = True,
    devices: int | None = None,
    machines: int = 1,
    device_gb: float | None = None,
    size: str | None = None,
    about: About | None = None,
) -> Planned:
    """Plan a run on this machine, or on so many machines with so many graphics cards each. What is not here is taken
    from what the recipe says about itself: its cards, where there is none, and the size of its checkpoint.

    Args:
        config: the run's settings.
        memory: also the memory of each process.
        devices: graphics cards of a machine; None takes the devices of this one.
        machines: how many.
        device_gb: GB of a device; None takes those of this machine, or 80 for cards that are not here.
        size: a size of the family, in place of the checkpoint.
        about: what the recipe says of itself.

    Raises:
        TreadleError: A mistake that the user can mend.
    """
    check_simulator(config.simulator)
    if config.policy.kind is not None:
        policy_class(config.policy.kind)
    about, notes = about or About(), list[str]()
    if devices is None and (devices := _recipe_devices(config, about)) is not None:
        notes.append(f"No graphics card is here; planned for the {devices} of {CARD_GB:.0f} GB that the recipe is for.")
    here = _planned_machines(config, devices, machines)
    placement = place(config, here)
    room = device_gb * 1e9 if device_gb else CARD_GB * 1e9 if devices else _device_bytes(here)
    if size is None and about.size and not _is_here(config.policy.checkpoint):
        size = about.size
        notes.append(_absent(config.policy, about))
    if not memory:
        return Planned(config, placement, room, None, tuple(notes), devices is not None)
    policy = _sized(config.policy, size, about.facts) if size else _outline(config.policy)
    return Planned(config, placement, room, Plan(config, placement, policy), tuple(notes), devices is not None)


def _recipe_devices(config: TrainConfig, about: About) -> int | None:
    """The graphics cards that a recipe is for, where this machine has none and no device was asked for."""
    return about.devices if config.device == "auto" and choose_device("auto").type == CPU else None


def _planned_machines(config: TrainConfig, devices: int | None, machines: int) -> Machines:
    """This machine, or so many with so many graphics cards each. Raises ConfigError."""
    if devices is None:
        if machines > 1:
            raise ConfigError(f"--machines: found {machines} without --devices; say how many graphics cards each has")
        return machine_of(choose_device(config.device))
    names = ("this machine",) if machines == 1 else tuple(f"node{number}" for number in range(machines))
    return Machines("cuda", (tuple(range(devices)),) * machines, names)


def _device_bytes(machines: Machines) -> float:
    """Of the smallest device of this machine."""
    if machines.kind == "cuda":
        return min(torch.cuda.get_device_properties(number).total_memory for number in machines.devices[0])
    return psutil.virtual_memory().total


def _outline(config: PolicyConfig) -> Policy:
    try:
        directory = resolve_checkpoint(config.checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; without a checkpoint, give a size: --size 7b") from None
    return outline_policy(directory, config)


def _is_here(checkpoint: str) -> bool:
    try:
        resolve_checkpoint(checkpoint)
    except CheckpointError:
        return False
    return True


def _absent(config: PolicyConfig, about: About) -> str:
    """What is planned in place of a checkpoint, and where to get it."""
    found = f"No checkpoint folder {config.checkpoint!r} is here; planned for {config.kind} of {about.size}."
    return f"{found} hf download {about.checkpoint} --local-dir {config.checkpoint}" if about.checkpoint else found


def _sized(config: PolicyConfig, size: str, facts: Mapping[str, Any]) -> Policy:
    if config.kind is None:
        raise ConfigError(f"--size: found {size!r} without policy.kind, the name of the policy; set that too")
    dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16
    return policy_class(config.kind).outline_size(size, dtype, **{**facts, **config.options})


def show_plan(console: Console, planned: Planned) -> None:
    """For people: where each role is, and what each kind of process holds at its peaks."""
    for line in (*planned.lines, *planned.notes):
        console.print(Text(line), soft_wrap=True)
    if (plan := planned.plan) is None:
        return
    total, trained = format_count(plan.total), format_count(plan.trained)
    said = f"of {plan.policy.kind}, {total} parameters, of which {trained} are trained"
    console.print(Text.assemble(("\nMemory ", "bold"), said))
    console.print(_table(planned, plan))
    console.print(Text(_NOT_COUNTED, "dim"))
    if plan.activations is None:
        console.print(Text("This policy does not say what its activations take; they come on top.", "yellow"))
    _conclude(console, planned, plan)


def dry_run(recipe: Recipe, config: TrainConfig, console: Console) -> None:
    """Show what `treadle train` would do, and begin nothing. Raises TreadleError for a run that could not begin."""
    planned = plan_run(config, about=recipe.about)
    show_plan(console, planned)
    for line in recipe.about.differs:
        console.print(Text.assemble(("Otherwise than published: ", "bold"), line), soft_wrap=True)


def _table(planned: Planned, plan: Plan) -> Table:
    """A pair of columns for each kind of process, of the one that needs most."""
    kinds: dict[str, ProcessMemory] = {}
    counts: Counter[str] = Counter()
    for process in plan.processes:
        kind = " and ".join(
            name for name, role in (("player", process.place.player), ("rank", process.place.rank)) if role
        )
        counts[kind] += 1
        kinds[kind] = max(kinds.get(kind, process), process, key=lambda process: process.peak)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    columns: list[tuple[dict[str, int], float]] = []
    for kind, process in kinds.items():
        for title, parts in (("playing", process.play), ("training", process.train)):
            if parts:
                table.add_column(f"{kind} ({counts[kind]})\n{title}", justify="right")
                columns.append((dict(parts), planned.room(process)))
    for use in USES:
        if any(parts.get(use) for parts, _ in columns):
            table.add_row(use, *(format_bytes(parts[use]) if parts.get(use) else "" for parts, _ in columns))
    table.add_section()
    table.add_row("at the peak", *(format_bytes(sum(parts.values())) for parts, _ in columns), style="bold")
    table.add_row("of the device", *(_share(sum(parts.values()), room) for parts, room in columns))
    return table


def _share(used: int, room: float) -> Text:
    share = used / room
    colour = "red" if share > 1 else "yellow" if share > TIGHT else "green"
    return Text(f"{share:.0%} of {format_bytes(round(room))}", colour)


def _conclude(console: Console, planned: Planned, plan: Plan) -> None:
    over = [process for process in plan.processes if process.peak > planned.room(process)]
    if not over:
        tight = any(process.peak > TIGHT * planned.room(process) for process in plan.processes)
        said = "It fits, with less than a tenth to spare." if tight else "It fits."
        console.print(Text(said, "yellow" if tight else "green"))
        return
    worst = max(over, key=lambda process: process.peak - planned.room(process))
    lacking = format_bytes(round(worst.peak - planned.room(worst)))
    many = f"{len(over)} of {len(plan.processes)} processes do" if len(plan.processes) > 1 else "It does"
    console.print(Text(f"{many} not fit: {lacking} too little for {worst.place.name}. What helps:", "red"))
    for advice in planned.advice:
        console.print(Text(f"  {advice}"), soft_wrap=True)
