"""What the roles of a run cost: simulating, generating and learning, as far as a plan has to know."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from treadle.errors import ConfigError
from treadle.files import to_json, write_atomically
from treadle.reading import read_json
from treadle.tables import Table, read_table

ROLES = ("simulate", "generate", "learn")


@dataclass(frozen=True, slots=True)
class Affine:
    """Seconds that grow with the size of the work; no work takes none."""

    fixed: float
    each: float

    def __call__(self, size: float) -> float:
        """Seconds for work of this size."""
        return self.fixed + self.each * size if size else 0.0

    @classmethod
    def through(cls, smaller: tuple[float, float], larger: tuple[float, float]) -> "Affine":
        """Through two measurements of (size, seconds); neither part is below 0."""
        (few, least), (many, most) = smaller, larger
        each = min(max(0.0, (most - least) / (many - few)), most / many)
        return cls(max(0.0, most - each * many), each)


@dataclass(frozen=True, slots=True)
class Profile:
    """The costs of one recipe's roles on one kind of device.

    Roles that were measured with several numbers of devices have an entry for each.
    """

    source: str
    """Who measured or assumed it, and on what."""
    simulate: Mapping[int, Affine]
    """By devices of a worker: a chunk of so many slots."""
    generate: Mapping[int, Affine]
    """By devices of a player: a decision of so many slots."""
    learn: Mapping[int, Affine]
    """By devices of a rank: an update from so many decisions."""
    playing: tuple[float, ...] = (1.0,)
    """The share of slots that play at each decision of a rollout; the last holds for all that follow."""
    publish: float = 0.0
    """Seconds from an update's end until players act with its weights."""
    switch: float = 0.0
    """Seconds that a device takes to change from one role to another, as where idle ones are moved to host memory."""
    contention: float = 1.0
    """How many times as long work takes on a device that another role uses at the same time."""
    simulates_on: Literal["devices", "host"] = "devices"
    """`devices`: simulators use those of `placement.simulate`; `host`: processor cores beside them."""
    assumptions: tuple[str, ...] = field(default=())
    """What a reader has to know of how it was made."""

    def cost(self, role: str, devices: int) -> Affine:
        """Of a role with so many devices: as measured with the most of those that are not more."""
        known: Mapping[int, Affine] = getattr(self, role)
        return known[max((count for count in known if count <= devices), default=min(known))]

    def share_playing(self, decision: int) -> float:
        """Of the slots, at a decision of a rollout."""
        return self.playing[min(decision, len(self.playing) - 1)]


class _Cost(Table):
    devices: Annotated[int, Field(ge=1)]
    fixed: Annotated[float, Field(ge=0)]
    each: Annotated[float, Field(ge=0)]


_Costs = Annotated[list[_Cost], Field(min_length=1)]


class _File(Table):
    source: str
    simulate: _Costs
    generate: _Costs
    learn: _Costs
    playing: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] = [1.0]
    publish: Annotated[float, Field(ge=0)] = 0.0
    switch: Annotated[float, Field(ge=0)] = 0.0
    contention: Annotated[float, Field(ge=1)] = 1.0
    simulates_on: Literal["devices", "host"] = "devices"
    assumptions: list[str] = []


def read_profile(path: Path) -> Profile:
    """A profile that `write_profile` wrote, or that was written by hand. Raises ConfigError."""
    table = read_table(_File, read_json(path, ConfigError), path, error=ConfigError)

    def costs(found: list[_Cost]) -> dict[int, Affine]:
        return {cost.devices: Affine(cost.fixed, cost.each) for cost in found}

    return Profile(
        table.source,
        costs(table.simulate),
        costs(table.generate),
        costs(table.learn),
        tuple(table.playing),
        table.publish,
        table.switch,
        table.contention,
        table.simulates_on,
        tuple(table.assumptions),
    )


def write_profile(path: Path, profile: Profile) -> None:
    """Raises OutputError."""
    write_atomically(path, to_json(plain(profile)) + "\n")


def plain(profile: Profile) -> dict[str, Any]:
    """A profile as the plain data of its file."""

    def costs(role: Mapping[int, Affine]) -> list[dict[str, float]]:
        return [{"devices": devices, **asdict(cost)} for devices, cost in sorted(role.items())]

    roles = {role: costs(getattr(profile, role)) for role in ROLES}
    rest = {name: getattr(profile, name) for name in ("publish", "switch", "contention", "simulates_on")}
    lists = {"playing": list(profile.playing), "assumptions": list(profile.assumptions)}
    return {"source": profile.source, **roles, **rest, **lists}
