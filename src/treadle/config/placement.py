"""Where a run's roles are: which devices simulate, generate and train, and how their processes find each other."""

import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator

from treadle.config.section import Natural, Rate, Section

_ITEM = re.compile(r"(?:node(?P<node>\d+):)?(?:(?P<first>\d+)(?:-(?P<last>\d+))?|(?P<all>all))")


class DeviceRange(NamedTuple):
    """Neighbouring devices."""

    node: int | None
    """The machine they are of; None counts the devices of all machines, one machine after another."""
    first: int
    last: int | None
    """Included; None for all that follow."""


def parse_devices(text: str) -> list[DeviceRange]:
    """Devices as a recipe names them: `all`, `0-3`, `0,2,5-7`, `node0:0-3,node1:all`. Raises ValueError."""
    ranges: list[DeviceRange] = []
    for item in (part.strip() for part in text.split(",")):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ValueError(
                f"found {item!r} in {text!r}, allowed are all, a number, a range such as 0-3, each of them after a "
                "machine as in node1:0-3, and several with commas between"
            )
        node = None if match["node"] is None else int(match["node"])
        first = 0 if match["all"] else int(match["first"])
        last = None if match["all"] else int(match["last"] or match["first"])
        if last is not None and last < first:
            raise ValueError(f"found {item!r} in {text!r}, which ends before it begins; write {last}-{first}")
        ranges.append(DeviceRange(node, first, last))
    return ranges


def _check(text: str) -> str:
    parse_devices(text)
    return text


Devices = Annotated[str, AfterValidator(_check)]


class PlacementConfig(Section):
    """Which devices each role has. Devices are the graphics cards of the machines, and on a CPU its processor cores,
    from 0. Roles on the same devices take turns; roles on different ones overlap or wait for each other.
    """

    simulate: Devices = "all"
    """Devices of the simulators: `all`, `0-3`, `0,2,5-7`, on several machines `node0:0-3,node1:all`. Each player has
    its share of those on its own machine."""
    generate: Devices = "all"
    """Devices on which the policy acts; each graphics card has a player, a process with simulators of its own."""
    train: Devices = "all"
    """Devices that train; each graphics card has a rank, a process that holds a part of each batch."""
    players: Natural = 0
    """Processes that play. 0 takes one for each graphics card that generates, and on CPUs one for each machine."""
    ranks: Natural = 0
    """Processes that train. 0 takes one for each graphics card that trains, and on CPUs one."""
    sharding: Literal["auto", "none", "full"] = "auto"
    """`full` divides weights, gradients and optimizer state among the ranks (FSDP2), `none` gives each rank all of
    them. `auto` divides where all weights are trained on several graphics cards, and not where adapters are."""
    offload: bool = False
    """Keep the optimizer's state in host memory while rollouts are played: less device memory, some time."""


class RuntimeConfig(Section):
    """How a run of several processes runs. They are Ray actors; a run that needs one process does without Ray."""

    address: str | None = None
    """The Ray cluster to run on, `HOST:PORT`, or `auto` for the one that this machine belongs to; none starts Ray on
    this machine alone, for this run alone."""
    timeout: Rate = 1800.0
    """Seconds that a process may take for a rollout, an update or a save before it is given up as hung."""
    profile: Path | None = None
    """A file that `treadle plan RECIPE --save-profile FILE` wrote: the report then has the time of an iteration that it
    predicts beside the measured one."""
