"""The timeline of a run's iterations, by discrete events: what every device does when, from a profile of the roles.

Roles that share a device take turns on it, in the order in which their work is ready, and pay for each change where a
profile says what it costs. So lanes gain where simulating and generating have devices of their own, and playing beside
training where training has.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from treadle.runtime.planning.profile import Profile
from treadle.runtime.planning.shape import Alike, Device, Devices, PlayerShape, Shape, one_of_each
from treadle.workers.partition import partition

ITERATIONS = 6
"""That are simulated: the first fill the pipeline."""
REPEATED = 3
"""Where rollouts wait for the weights before, and so all iterations after the first are alike."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A piece of work on its devices; times in seconds."""

    role: str
    devices: Devices
    began: float
    ended: float
    iteration: int
    lane: int = 0


@dataclass(slots=True)
class Timeline:
    """What came of it."""

    played: list[Bar]
    """Of one of each kind of processes that are alike."""
    published: list[float]
    """When the weights of each update were there."""
    alike: Alike
    """The devices of all others, for each device of `played`."""

    @property
    def bars(self) -> list[Bar]:
        """Of all processes."""
        found: list[Bar] = []
        for bar in self.played:
            columns = zip(*(self.alike[device] for device in bar.devices), strict=True)
            found += [replace(bar, devices=frozenset(devices)) for devices in columns]
        return found

    @property
    def seconds(self) -> float:
        """Of an iteration, once the pipeline is full."""
        return (self.published[-1] - self.published[1]) / (len(self.published) - 2)

    def busy(self) -> dict[str, float]:
        """The share of time in which the devices of each role were at work for it, once the pipeline is full."""
        first, last = self.published[1], self.published[-1]
        seconds: dict[str, float] = {}
        devices: dict[str, set[Device]] = {}
        for bar in self.played:
            inside = max(0.0, min(bar.ended, last) - max(bar.began, first))
            seconds[bar.role] = seconds.get(bar.role, 0.0) + inside * sum(len(self.alike[d]) for d in bar.devices)
            devices.setdefault(bar.role, set()).update(bar.devices)
        counts = {role: sum(len(self.alike[device]) for device in own) for role, own in devices.items()}
        return {role: seconds[role] / counts[role] / (last - first) for role in seconds}


def simulate_timeline(shape: Shape, profile: Profile) -> Timeline:
    """Play some iterations on paper. Of processes that share no device and are alike, one is played."""
    slots = sum(player.slots for player in shape.players)
    first, alike = one_of_each(shape)
    return _Simulation(first, profile, ITERATIONS if shape.staleness else REPEATED, slots, alike).run()


@dataclass(slots=True)
class _Task:
    role: str
    devices: Devices
    seconds: float
    iteration: int
    lane: int
    done: Callable[[float], None]


@dataclass(slots=True)
class _Simulation:
    shape: Shape
    profile: Profile
    iterations: int
    slots: int
    """Of all players."""
    alike: Alike
    waiting: list[tuple[float, int, _Task]] = field(default_factory=list[tuple[float, int, _Task]])
    free: dict[tuple[str, int, int], float] = field(default_factory=dict[tuple[str, int, int], float])
    doing: dict[tuple[str, int, int], str] = field(default_factory=dict[tuple[str, int, int], str])
    """The role that each device worked for last."""
    bars: list[Bar] = field(default_factory=list[Bar])
    published: list[float] = field(default_factory=list[float])
    played: dict[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])
    """When each rollout, of an iteration by number, was there."""
    begun: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    learnt: dict[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])
    """When each part of an update was done."""
    learning: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    numbers: "count[int]" = field(default_factory=count)
    slower: dict[tuple[str, Devices], float] = field(default_factory=dict[tuple[str, Devices], float])
    """How many times as long work takes, by role and devices."""

    def run(self) -> Timeline:
        """Take what is ready first, until nothing is left."""
        self.published.append(0.0)
        self._go_on(0.0)
        while self.waiting:
            ready, _, task = heapq.heappop(self.waiting)
            began, seconds = self._begin(ready, task)
            ended = began + seconds
            for device in task.devices:
                self.free[device] = ended
            self.bars.append(Bar(task.role, task.devices, began, ended, task.iteration, task.lane))
            task.done(ended)
        return Timeline(self.bars, self.published, self.alike)

    def _begin(self, ready: float, task: _Task) -> tuple[float, float]:
        """When its devices are free for it, and how long it takes."""
        began = max([ready, *(self.free.get(device, 0.0) for device in task.devices)])
        before = {device: self.doing.get(device, task.role) for device in task.devices}
        others = [device for device, role in before.items() if role != task.role]
        self.doing |= dict.fromkeys(task.devices, task.role)
        work = (task.role, task.devices)
        if work not in self.slower:
            self.slower[work] = self.profile.contention if self.shape.is_contended(*work) else 1.0
        return began + (self.profile.switch if others else 0.0), task.seconds * self.slower[work]

    def _submit(self, ready: float, task: _Task) -> None:
        heapq.heappush(self.waiting, (ready, next(self.numbers), task))

    def _go_on(self, now: float) -> None:
        """Begin every rollout and every part of an update that can begin."""
        rollouts = self.shape.rollouts
        for iteration in range(self.iterations):
            for number in range(rollouts):
                here, before = (iteration, number), (iteration, number - 1) if number else (iteration - 1, rollouts - 1)
                version = max(0, iteration - self.shape.staleness)
                if (
                    here not in self.begun
                    and version < len(self.published)
                    and (before in self.played or here == (0, 0))
                ):
                    self.begun.add(here)
                    self._play(here, max(now, self.published[version]))
            self._learn_what_is_there(iteration, now)

    def _learn_what_is_there(self, iteration: int, now: float) -> None:
        if len(self.published) != iteration + 1:
            return
        rollouts = self.shape.rollouts
        parts = rollouts if self.shape.streams else 1
        for part in range(parts):
            here = (iteration, part)
            needed = [(iteration, part)] if parts > 1 or rollouts == 1 else [(iteration, n) for n in range(rollouts)]
            first = part == 0 or (iteration, part - 1) in self.learnt
            if here not in self.learning and first and all(rollout in self.played for rollout in needed):
                self.learning.add(here)
                self._learn(here, rollouts // parts, last=part == parts - 1, now=now)

    def _play(self, rollout: tuple[int, int], now: float) -> None:
        """One rollout, by every player in all of its lanes."""
        left = sum(player.lanes for player in self.shape.players)

        def lane_ended(at: float) -> None:
            nonlocal left
            left -= 1
            if not left:
                self.played[rollout] = at
                self._go_on(at)

        for player in self.shape.players:
            parts = partition(player.slots, player.lanes, len(player.workers))
            for lane in range(player.lanes):
                serving = [
                    (player.workers[worker], part.stop - part.first)
                    for worker, own in enumerate(parts)
                    for part in own
                    if part.lane == lane
                ]
                self._decide(rollout, player, lane, serving, 0, now, lane_ended)

    def _decide(
        self,
        rollout: tuple[int, int],
        player: PlayerShape,
        lane: int,
        serving: Sequence[tuple[Devices, int]],
        decision: int,
        now: float,
        ended: Callable[[float], None],
    ) -> None:
        """A lane's decision, and what follows from it."""
        share = self.profile.share_playing(decision)
        if decision == self.shape.decisions or not share:
            ended(now)
            return

        def decided(at: float) -> None:
            left = len(serving)

            def simulated(at: float) -> None:
                nonlocal left
                left -= 1
                if not left:
                    self._decide(rollout, player, lane, serving, decision + 1, at, ended)

            for devices, slots in serving:
                seconds = self.profile.cost("simulate", len(devices))(slots * share)
                self._submit(at, _Task("simulate", devices, seconds, rollout[0], lane, simulated))

        slots = sum(slots for _, slots in serving) * share
        seconds = self.profile.cost("generate", len(player.generate))(slots)
        self._submit(now, _Task("generate", player.generate, seconds, rollout[0], lane, decided))

    def _learn(self, here: tuple[int, int], rollouts: int, *, last: bool, now: float) -> None:
        """A part of an update, on all ranks; the last one publishes."""
        shape = self.shape
        decisions = rollouts * sum(self.slots * self.profile.share_playing(t) for t in range(shape.decisions))
        left = len(shape.ranks)

        def learnt(at: float) -> None:
            nonlocal left
            left -= 1
            if left:
                return
            self.learnt[here] = at
            if last:
                self.published.append(at + self.profile.publish)
            self._go_on(at)

        for rank in shape.ranks:
            seconds = self.profile.cost("learn", len(rank.devices))(decisions * rank.share)
            self._submit(now, _Task("train", rank.devices, seconds, here[0], 0, learnt))
