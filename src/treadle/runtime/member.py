"""A member: one process of a run, with a policy, and with a player, a trainer rank, or both, which share the policy."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from treadle.config.schema import TrainConfig
from treadle.cores import usable_cores
from treadle.devices import peak_gpu_mb, prepare_cpu
from treadle.errors import CheckpointError, ConfigError
from treadle.policies.critic import PrivilegedCritic
from treadle.policies.load import load_configured
from treadle.policies.protocol import Policy
from treadle.reading import library
from treadle.reporting.machine import peak_rss_mb
from treadle.runtime.placement import CPU, Placement, ProcessPlace
from treadle.runtime.player import Player, check_decisions
from treadle.runtime.trainer import Trainer
from treadle.runtime.weights import twin
from treadle.training.algorithm import Training
from treadle.training.checkpoints import TRAINER
from treadle.training.finetuning import load_trainable
from treadle.training.ranks import ALONE, ProcessRanks, Ranks
from treadle.training.sharding import shard_policy
from treadle.workers.crew import Crew, check_dimensions, check_suites
from treadle.workers.plan import plan_crew


@dataclass(frozen=True, slots=True)
class Start:
    """What the members of a run begin with."""

    base: Path
    """The checkpoint that training starts from."""
    policy: Path
    """The policy that they load: the base, or that of the run's last checkpoint."""


class Member:
    """The policy of a process, and its simulators where it has a player. `begin` adds the roles.

    Args:
        config: the run's settings.
        placement: every process of the run.
        number: this one's place among them.
        start: what is loaded.

    Raises:
        TreadleError: A mistake that the user can mend.
    """

    def __init__(self, config: TrainConfig, placement: Placement, number: int, start: Start) -> None:
        self.place = placement.processes[number]
        self.device = _device(placement, self.place)
        self._config = config
        self._base = start.base
        self._player: Player | None = None
        self._trainer: Trainer | None = None
        self._exit = ExitStack()
        self._pins = placement.machines.kind == CPU and placement.machines.physical
        self.crew: Crew | None = None
        prepare_cpu(config.torch_threads or _threads(self.place, overlaps=config.overlap != "none"))
        # Every member draws the same numbers for whatever it adds to the policy.
        torch.manual_seed(config.seed)
        self._sharded = placement.sharded and self.place.rank is not None
        # A policy that is to be divided is moved to the device part by part.
        where = torch.device(CPU) if self._sharded else self.device
        self.policy = load_trainable(start.policy, config.policy, where, freeze_vision=config.policy.freeze_vision)
        check_decisions(config, self.policy.chunk)
        try:
            self._open_simulators(placement)
        except BaseException:
            self._exit.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    @property
    def player(self) -> Player:
        """Its player."""
        assert self._player is not None
        return self._player

    @property
    def trainer(self) -> Trainer:
        """Its trainer."""
        assert self._trainer is not None
        return self._trainer

    def begin(self, state_dim: int, ranks: Ranks = ALONE, *, shared: bool = True) -> None:
        """Make its roles.

        Args:
            state_dim: numbers of the simulators' privileged state.
            ranks: those that train.
            shared: every player has its policy from a trainer rank in its own process.

        Raises:
            ConfigError: Settings that policy, critic and algorithm cannot have together.
        """
        config = self._config
        critic = build_critic(config, self.policy, state_dim, self.device)
        self.policy.freeze(vision=config.policy.freeze_vision)
        acting, copied = self.policy, False
        if config.overlap != "none" and self.crew is not None and self.place.rank is not None:
            # A thread plays while this one trains: with modes of its own, and with weights that stay as they are.
            copied = config.overlap == "async"
            acting = twin(self.policy, share_trained=not copied)

        def divide(policy: Policy) -> Policy:
            if not self._sharded:
                return policy
            assert isinstance(ranks, ProcessRanks)
            return shard_policy(policy, ranks, self.device)

        def load_reference() -> Policy:
            where = CPU if self._sharded else str(self.device)
            return divide(load_configured(self._base, config.policy, device=where).eval())

        divide(self.policy)
        if self.crew is not None:
            assert self.place.player is not None
            self._player = Player(
                config,
                self.crew,
                acting,
                slots=self.place.player.slots,
                cores=self.place.player.generate if self._pins else (),
            )
        if self.place.rank is not None:
            training = Training(self.policy, critic, config, self.device, load_reference, ranks)
            self._trainer = Trainer(training, shared=shared and not copied, copied=copied)

    def load_state_dict(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Go on from the state in a run's checkpoint, whose policy is loaded already. Raises CheckpointError for the
        state of another run.
        """
        path = checkpoint / TRAINER
        try:
            with library(path, CheckpointError, "the state of this run"):
                if self._trainer is not None:
                    self._trainer.load_state_dict(state)
                if self._player is not None:
                    self._player.load_state_dict(state["player"], state["iteration"])
        except CheckpointError as error:
            # What holds a part of the state does not know the file.
            named = str(error).startswith(str(path))
            raise error if named else CheckpointError(f"{path}: {error}") from error

    def peak_memory(self) -> tuple[float, float]:
        """The most memory that this process and its workers have held, in MB: theirs, and of graphics cards."""
        return peak_rss_mb(() if self.crew is None else self.crew.pids), peak_gpu_mb()

    def _open_simulators(self, placement: Placement) -> None:
        config, place, machines = self._config, self.place.player, placement.machines
        if place is None:
            return
        plan = plan_crew(
            config.simulator,
            config.collection,
            accelerated=machines.kind != CPU,
            slots=place.slots.stop - place.slots.start,
            simulate_cores=place.simulate if self._pins else (),
            generate_cores=place.generate if self._pins else (),
            gpus=place.simulate if machines.kind == "cuda" else (),
        )
        self.crew = self._exit.enter_context(Crew(plan))
        check_dimensions(self.crew, self.policy.action_dim)
        check_suites(self.crew, config.evaluation)


def build_critic(config: TrainConfig, policy: Policy, state_dim: int, device: torch.device) -> PrivilegedCritic | None:
    """The network on privileged states that a config asks for; or the policy gets the head that it asks for.

    Raises:
        ConfigError: A privileged critic on a simulator without privileged state.
    """
    needs = config.needs
    if not needs.values:
        return None
    outputs = policy.chunk if needs.values_per_action else 1
    if config.critic.kind == "value_head":
        if policy.value_outputs != outputs:
            policy.add_value_head(outputs)
        return None
    if state_dim == 0:
        raise ConfigError(
            f"critic.kind 'privileged': the simulator {config.simulator.name!r} offers no privileged state; "
            "use critic.kind=value_head"
        )
    return PrivilegedCritic(state_dim, outputs, config.critic.width).to(device)


def _device(placement: Placement, place: ProcessPlace) -> torch.device:
    """The device of a process's policy."""
    kind = placement.machines.kind
    if kind != "cuda":
        return torch.device(kind)
    (number,) = place.rank.train if place.rank else place.player.generate if place.player else (0,)
    return torch.device("cuda", number)


def _threads(place: ProcessPlace, *, overlaps: bool) -> int:
    """Threads of torch: as many as the process has cores of its own, 0 if it has any; half of them, if it acts and
    trains at the same time.
    """
    cores = place.rank.train if place.rank else place.player.generate if place.player else ()
    if overlaps and place.rank and place.player:
        return max(1, (len(cores) or len(usable_cores())) // 2)
    return len(cores)
