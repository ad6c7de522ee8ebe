"""The memory of a run on each device, before it starts: of the policy, in each process of a placement.

Left out are the simulators, rollouts (in host memory), a critic with its own network, and what the libraries take
themselves.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from treadle.config.on_policy import OnPolicyConfig
from treadle.config.schema import TrainConfig
from treadle.policies.footprint import (
    ACTIVATIONS,
    ADAPTERS,
    COPIES,
    GATHERED,
    GRADIENTS,
    MASTER,
    MOMENTS,
    OLDER,
    REFERENCE,
    WEIGHTS,
    Activations,
    Held,
    Parts,
    copies,
    hold,
    keep,
    peak,
)
from treadle.policies.protocol import Policy
from treadle.runtime.member import build_critic
from treadle.runtime.placement import CPU, Placement, ProcessPlace
from treadle.training.finetuning import make_trainable
from treadle.training.sharding import find_units

LANES = 2
"""Of a player whose policy has a device of its own, where `collection.lanes` is 0."""
TIGHT = 0.9
"""Share of a device from which on a plan leaves too little for what it does not count."""


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes on the device of a process, by what they are for."""

    place: ProcessPlace
    play: Mapping[str, int] = field(default_factory=dict)
    """At the peak of a rollout."""
    train: Mapping[str, int] = field(default_factory=dict)
    """At the peak of an update."""

    @property
    def peaks(self) -> tuple[int, int]:
        """Of play and of training."""
        return sum(self.play.values()), sum(self.train.values())

    @property
    def peak(self) -> int:
        """The greater of both."""
        return max(self.peaks)


class Plan:
    """What every process of a placement holds.

    Args:
        config: the run's settings.
        placement: its processes.
        policy: the policy that it starts from, for its shapes and types alone; it is changed.

    Raises:
        ConfigError: Settings that the policy does not have.
    """

    def __init__(self, config: TrainConfig, placement: Placement, policy: Policy) -> None:
        self._config, self._placement = config, placement
        algorithm = config.algorithm if isinstance(config.algorithm, OnPolicyConfig) else None
        self.micro_batch = algorithm.micro_batch if algorithm else 1
        reference = copy.deepcopy(policy) if algorithm and algorithm.reference.coefficient else None
        make_trainable(policy, config.policy, freeze_vision=config.policy.freeze_vision)
        build_critic(config, policy, 1, policy.device)
        policy.freeze(vision=config.policy.freeze_vision)
        self.policy, self._reference = policy, reference
        self.activations: Activations | None = policy.activations()
        """Of a sample; None where the policy does not say."""
        self.processes = [self._measure(process) for process in placement.processes]

    @property
    def total(self) -> int:
        """Parameters of the policy."""
        return sum(parameter.numel() for parameter in self.policy.parameters())

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return sum(parameter.numel() for parameter in self.policy.parameters() if parameter.requires_grad)

    def fitting_micro_batch(self, process: ProcessMemory, room: float) -> int | None:
        """The largest micro-batch that a process trains on in so many bytes; None for none, or if that is not known."""
        if not self.activations or not process.train.get(ACTIVATIONS):
            return None
        each = self.activations.training(1, self._config.policy.gradient_checkpointing)
        left = room - process.peaks[1] + process.train[ACTIVATIONS]
        return int(left // each) if left >= each else None

    def _measure(self, process: ProcessPlace) -> ProcessMemory:
        if process.rank is None:
            return ProcessMemory(process, play={**_bare(_hold(self.policy)), ACTIVATIONS: self._acting(process)})
        ranks = len(self._placement.ranks)
        parts = ranks if self._placement.sharded else 1
        held = _hold(self.policy, process.rank.number, parts)
        lasting = keep(held, average=bool(self._config.optimizer.average))
        if self._reference is not None:
            lasting[REFERENCE] = sum(_bare(_hold(self._reference, process.rank.number, parts)).values())
        gathered = 0
        if parts > 1:
            gathered = _gathered(self.policy)
            if self._reference is not None:
                gathered = max(gathered, _gathered(self._reference))
        samples, recompute = self.micro_batch, self._config.policy.gradient_checkpointing
        passing = self.activations.training(samples, recompute) if self.activations else 0
        if self._config.overlap != "none" and process.player is not None:
            # A thread acts while this one trains, on weights of its own where they are older.
            passing += self._acting(process)
            lasting[OLDER] = self._older(held)
        train = peak(lasting, {GATHERED: gathered, ACTIVATIONS: passing}, {COPIES: copies(held, ranks)})
        # Between updates there are no gradients; on a CPU nothing moves.
        waits = self._config.placement.offload and self._placement.machines.kind != CPU
        resting = lasting | dict.fromkeys((GRADIENTS, MASTER, MOMENTS) if waits else (GRADIENTS,), 0)
        if process.player is not None:
            resting |= {ACTIVATIONS: self._acting(process)}
            if parts > 1:
                resting[GATHERED] = sum(_bare(_hold(self.policy)).values())
        return ProcessMemory(process, resting, train)

    def _older(self, held: Iterable[Held]) -> int:
        """Bytes of the weights that a player of the same process acts with, and that wait for it on a CPU."""
        if self._config.overlap != "async":
            return 0
        copied = 1 + (self._config.staleness + 1) * (self._placement.machines.kind == CPU)
        return copied * sum(each.stored * each.width for each in held if each.trained)

    def _acting(self, process: ProcessPlace) -> int:
        """Bytes of a decision of a lane."""
        if self.activations is None or process.player is None:
            return 0
        accelerated = self._placement.machines.kind != CPU
        slots = process.player.slots.stop - process.player.slots.start
        lanes = min(slots, self._config.collection.lanes or (LANES if accelerated else 1))
        return self.activations.playing(-(-slots // lanes), accelerated)


def _hold(policy: Policy, rank: int = 0, parts: int = 1) -> list[Held]:
    whole = find_units(policy)[1] if parts > 1 else set[nn.Parameter]()
    return [
        hold(name, parameter, *((0, 1) if parameter in whole else (rank, parts)))
        for name, parameter in policy.named_parameters()
    ]


def _bare(held: Iterable[Held]) -> Parts:
    """Weights alone, of a policy that is not trained here."""
    found: dict[str, int] = dict.fromkeys((WEIGHTS, ADAPTERS), 0)
    for each in held:
        found[ADAPTERS if each.adapter else WEIGHTS] += each.stored * each.width
    return found


def _gathered(policy: Policy) -> int:
    """Bytes of weights that a pass of a divided policy gathers: what is in no unit, the unit at work and the next one.
    Gradients of one of them are whole before they are summed, in float32.
    """
    units, whole = find_units(policy)
    inside = [list(unit.parameters()) for unit in units]
    known = {parameter for unit in inside for parameter in unit} | whole
    rest = [parameter for parameter in policy.parameters() if parameter not in known]
    sizes = [sum(x.numel() * x.element_size() for x in unit) for unit in inside] or [0]
    summed = [sum(x.numel() * (x.element_size() + 4) for x in unit if x.requires_grad) for unit in (*inside, rest)]
    return sum(x.numel() * x.element_size() for x in rest) + 2 * max(sizes) + max(summed)


def advise(plan: Plan, config: TrainConfig, placement: Placement, room: float) -> list[str]:
    """What to change where a process needs more than so many bytes; nothing where all fit."""
    over = [process for process in plan.processes if process.peak > room]
    if not over:
        return []
    said: list[str] = []
    training = [process for process in over if process.peaks[1] > room]
    worst = max(training or over, key=lambda process: process.peak)
    if training:
        fits = [plan.fitting_micro_batch(process, room) for process in training]
        if not config.policy.gradient_checkpointing and plan.activations:
            said.append("policy.gradient_checkpointing=true, to keep less of each sample")
        if all(fits) and plan.micro_batch > 1:
            said.append(f"algorithm.micro_batch={min(fit for fit in fits if fit)}, which gives the same gradient")
        if not placement.sharded and not config.policy.lora.rank and len(placement.ranks) > 1:
            said.append("placement.sharding=full, so that each rank holds a part")
        if not config.policy.lora.rank:
            said.append("policy.lora.rank=32, to train adapters alone")
        if config.optimizer.average:
            said.append("optimizer.average=0, to keep no average of weights")
        if placement.sharded or len(placement.ranks) == 1:
            said.append(f"more devices in placement.train (now {len(placement.ranks)})")
    if any(process.peaks[0] > room for process in over):
        if not config.placement.offload and any(worst.play.get(name) for name in (MASTER, MOMENTS)):
            said.append("placement.offload=true, so that optimizer state waits in host memory")
        said.append("fewer simulator.slots, or more collection.lanes: a decision is made for the slots of a lane")
    return said


def describe_memory(plan: Plan) -> str:
    """What every process holds at its peak, in a line for a person."""
    parts = [
        f"{process.place.name} "
        + " and ".join(
            f"{size / 1e9:.2f} GB {doing}"
            for doing, size in zip(("playing", "training"), process.peaks, strict=True)
            if size
        )
        for process in plan.processes
    ]
    return f"memory of tensors at the peak, predicted: {'; '.join(dict.fromkeys(parts))}"
