"""The settings and the identity of an episode: which object, plate, table, places, rotation and extra."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Split
from treadle.simulators.maniskill.put_on_plate import placements

OBJECTS, PLATES, TABLES = 25, 17, 21
SEEN_OBJECTS, SEEN_TABLES = 16, 16
"""The first of each are for training, the others are unseen."""
EVALUATED = 8
"""One in so many episodes of a setting is its evaluation split, spread over the setting; the others are training's."""

Effect = Literal["none", "texture", "whole", "phrase", "object", "plate", "arm", "move"]
"""What the extra of an episode chooses: a texture on arm and things, or on the whole image, a wording, another object,
another plate, the arm's start. `move` chooses nothing and moves the object."""

Drops = Literal["rl4vla", "rlinf"]
"""Whose heights things are let go at, to settle before an episode."""

FIRST_EPISODES = {
    "train": 54141,
    "semantic/two-objects-seen": 7877501,
    "semantic/two-plates-seen": 40194941,
    "execution/moved": 1414013,
}
"""The ones that published environments of one scene start with when they are built: the first that torch draws with
seed 2022 below the lengths of these settings.
"""
_BEGINS: dict[Effect, str] = {
    "object": "semantic/two-objects-seen",
    "plate": "semantic/two-plates-seen",
    "move": "execution/moved",
}
"""With which of them, by the effect of what is played; else with training's."""

PHRASES = (
    "put {object} on {plate}",
    "Place the {object} on the {plate}",
    "set {object} on {plate}",
    "move the {object} to the {plate}",
    "Take the {object} and put it on the {plate}",
    "pick up {object} and set it down on {plate}",
    "please put the {object} on the {plate}",
    "Put {object} onto {plate}.",
    "place the {object} onto the {plate} surface",
    "Make sure {object} is on {plate}.",
    "on the {plate}, put the {object}",
    "put the {object} where the {plate} is",
    "Move the {object} from the table to the {plate}",
    "Move {object} so it\u2019s on {plate}.",
    "Can you put {object} on {plate}?",
    "{object} on the {plate}, please.",
    "the {object} should be placed on the {plate}.",
    "Lay the {object} down on the {plate}.",
    "could you place {object} over {plate}",
    "position the {object} atop the {plate}",
    "Arrange for the {object} to be resting on {plate}.",
)
"""The published wordings: the training wording, sixteen for the setting of other wordings, and four that no setting
uses."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One episode, whole."""

    object: int
    plate: int
    table: int
    places: NDArray[np.float64]
    """[2 or 3, 2] metres: object, plate, and the third thing or the place that the object is moved to."""
    drops: tuple[float, ...]
    """[3] metres of height at which object, plate and a third thing are let go."""
    yaw: float
    """Of the object, radians."""
    arm: NDArray[np.float64]
    """[8] joints."""
    effect: Effect = "none"
    strength: float = 0.0
    """Share of the texture in the image."""
    texture: int = 0
    phrase: int = 0
    other: int = 0
    """The other object or plate, where the effect is one."""


@dataclass(frozen=True)
class Setting:
    """A distribution of episodes: the product of what it lists."""

    objects: tuple[int, int] = (0, SEEN_OBJECTS)
    """First, and one past the last."""
    plates: tuple[int, int] = (0, 1)
    tables: tuple[int, int] = (0, SEEN_TABLES)
    effect: Effect = "none"
    strength: float = 0.0
    extras: int = 1
    unseen_places: bool = False
    others: tuple[int, int] = (0, 0)
    """Where the effect is another object or plate: among which."""

    @cached_property
    def places(self) -> NDArray[np.float64]:
        """[N, 2 or 3, 2]"""
        if self.effect in ("object", "plate", "move"):
            return placements.triples("plate" if self.effect == "plate" else "object")
        return placements.pairs(self.unseen_places)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many objects, extras, plates, tables, places and rotations there are; an episode is one of each."""
        spans = (self.objects, (0, self.extras), self.plates, self.tables, (0, len(self.places)), (0, 4))
        return tuple(stop - start for start, stop in spans)

    @cached_property
    def length(self) -> int:
        """Episodes of both splits."""
        return int(np.prod(self.sizes))

    def episodes(self, split: Split) -> int:
        """Episodes of a split."""
        kept = self.length // EVALUATED
        return kept if split == "evaluation" else self.length - kept

    def number(self, split: Split, index: int) -> int:
        """Which of the setting's episodes is the split's `index`-th: a fixed permutation, so that the first ones differ
        in everything; its last eighth is the evaluation split.
        """
        place = index + (self.episodes("train") if split == "evaluation" else 0)
        return (place * _coprime(self.length) + self.length // 3) % self.length

    def layout(self, number: int, drops: Drops = "rl4vla") -> Layout:
        """The episode of this number, below `length`."""
        thing, extra, plate, table, place, rotation = (int(n) for n in np.unravel_index(number, self.sizes))
        first = self.others[0]
        size = max(self.others[1] - first, 1)
        own = thing + self.objects[0] if self.effect == "object" else plate + self.plates[0]
        other = (own - first + extra + 1) % size + first if self.effect in ("object", "plate") else 0
        return self._layout(thing, extra, plate, table, place, rotation, other, drops)

    def published_layout(self, number: int, drops: Drops = "rl4vla") -> Layout:
        """The episode with this number in the published environments, below `length`: in two settings their order or
        arithmetic is another. There a second object may be the first one; it then lies in the second object's place.
        """
        if self.effect == "plate":
            objects, extras, plates, *rest = self.sizes
            numbers = np.unravel_index(number, (objects, plates, extras, *rest))
            thing, plate, extra, table, place, rotation = (int(n) for n in numbers)
        else:
            thing, extra, plate, table, place, rotation = (int(n) for n in np.unravel_index(number, self.sizes))
        first, stop = self.others
        own = {"object": thing + self.objects[0], "plate": plate}.get(self.effect)
        other = 0 if own is None else (own + extra + 1) % (stop - first) + first
        return self._layout(thing, extra, plate, table, place, rotation, other, drops)

    def _layout(
        self, thing: int, extra: int, plate: int, table: int, place: int, rotation: int, other: int, drops: Drops
    ) -> Layout:
        arm = placements.arm_starts()[extra] if self.effect == "arm" else placements.START
        rotations = placements.UNSEEN_ROTATIONS if self.unseen_places else placements.ROTATIONS
        return Layout(
            object=thing + self.objects[0],
            plate=plate + self.plates[0],
            table=table + self.tables[0],
            places=self.places[place],
            drops=self._drops(drops),
            yaw=float(rotations[rotation]),
            arm=arm,
            effect=self.effect,
            strength=self.strength,
            texture=extra + 1 if self.effect in ("texture", "whole") else 0,
            phrase=extra + 1 if self.effect == "phrase" else 0,
            other=other,
        )

    def _drops(self, drops: Drops) -> tuple[float, ...]:
        if self.effect in ("object", "move"):
            return 0.95, 0.92, 1.0
        if self.effect == "plate":
            return 1.0, 0.92, 0.96
        # RLinf lets things go lower than RL4VLA, wherever it has no places of its own.
        return (0.95, 0.95, 0.0) if drops == "rl4vla" or self.unseen_places else (0.9, 0.9, 0.0)


def first_layout(effect: Effect) -> Layout:
    """What a published environment starts with when it is built, whatever it is to play."""
    name = _BEGINS.get(effect, "train")
    return SETTINGS[name].published_layout(FIRST_EPISODES[name])


@cache
def _coprime(length: int) -> int:
    """A multiplier that permutes 0 to length - 1 and spreads neighbours apart: near length times the golden section."""
    step = int(length * 0.6180339887) | 1
    while np.gcd(step, length) != 1:
        step += 2
    return step


_UNSEEN_OBJECTS, _UNSEEN_PLATES = (SEEN_OBJECTS, OBJECTS), (1, PLATES)

SETTINGS: dict[str, Setting] = {
    "train": Setting(),
    "vision/table": Setting(tables=(SEEN_TABLES, TABLES)),
    "vision/texture-0.3": Setting(effect="texture", strength=0.3, extras=16),
    "vision/texture-0.5": Setting(effect="texture", strength=0.5, extras=16),
    "vision/whole-0.3": Setting(effect="whole", strength=0.3, extras=16),
    "vision/whole-0.5": Setting(effect="whole", strength=0.5, extras=16),
    "semantic/object": Setting(objects=_UNSEEN_OBJECTS),
    "semantic/object-seen": Setting(),
    "semantic/plate": Setting(plates=_UNSEEN_PLATES),
    "semantic/wording": Setting(effect="phrase", extras=16),
    "semantic/two-objects": Setting(objects=_UNSEEN_OBJECTS, effect="object", extras=8, others=_UNSEEN_OBJECTS),
    "semantic/two-objects-seen": Setting(effect="object", extras=15, others=(0, SEEN_OBJECTS)),
    "semantic/two-plates": Setting(
        plates=_UNSEEN_PLATES, tables=(0, TABLES), effect="plate", extras=15, others=_UNSEEN_PLATES
    ),
    "semantic/two-plates-seen": Setting(tables=(0, TABLES), effect="plate", extras=16, others=(0, PLATES)),
    "execution/place": Setting(unseen_places=True),
    "execution/arm": Setting(effect="arm", extras=len(placements.arm_starts())),
    "execution/moved": Setting(effect="move"),
}
"""The suites, with `train` first; the others are the sixteen published settings, whose ids are in docs/maniskill.md."""


def axes() -> dict[str, Sequence[str]]:
    """The settings of each axis."""
    members: dict[str, list[str]] = {}
    for name in SETTINGS:
        if "/" in name:
            members.setdefault(name.split("/")[0], []).append(name)
    return {axis: tuple(names) for axis, names in members.items()}
