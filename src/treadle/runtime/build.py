"""From a configuration to the roles of a run, new or resumed, in one process or in many."""

import logging
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.run_directory import claim_run_directory, hold_run_directory
from treadle.config.schema import TrainConfig
from treadle.cores import usable_cores
from treadle.devices import choose_device, peak_gpu_mb
from treadle.errors import CheckpointError, ConfigError, MemberLostError
from treadle.policies.load import outline_policy
from treadle.reporting.console import RunConsole
from treadle.reporting.machine import peak_rss_mb, write_machine
from treadle.runtime.evaluator import Evaluator
from treadle.runtime.member import Member, Start
from treadle.runtime.memory import Plan, describe_memory
from treadle.runtime.overlap import OverlappedPlayers
from treadle.runtime.placement import CPU, Machines, Placement, describe, place
from treadle.runtime.planning.prediction import write_prediction
from treadle.runtime.planning.profile import read_profile
from treadle.runtime.preflight import at_temperature, fly, read_preflight, write_preflight
from treadle.runtime.recorder import Recorder
from treadle.runtime.roles import Players, Trainers
from treadle.runtime.weights import Weights
from treadle.training.checkpoints import TRAINER, last_whole, load_trainer

if TYPE_CHECKING:
    from treadle.runtime.cluster.run import Cluster

_log = logging.getLogger(__name__)

BEST = "best"
"""Folder of the policy that did best in the evaluations while training."""


@dataclass(slots=True)
class Run:
    """The roles of a run, and where they stand."""

    directory: Path
    base: Path
    """The checkpoint that training starts from."""
    version: int
    """Iterations done."""
    saved: int
    """Iterations done when it was last saved."""
    player: Players
    trainer: Trainers
    evaluator: Evaluator
    recorder: Recorder
    member: Member | None
    """The only process of the run; None where it has several."""
    cluster: "Cluster | None"
    """What the processes of the run are members of; None for a run of one process."""
    overlapped: OverlappedPlayers | None = None
    """The player, where it plays beside training."""

    @property
    def save_is_due(self) -> bool:
        """Whether to save now: as often as configured, at the end, and where the user asked to stop."""
        every, last = self.recorder.config.save_every, self.version == self.recorder.config.iterations
        return last or self.recorder.stop_asked or bool(every and self.version % every == 0)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether to evaluate now. The last iteration is like any other, so that a run that is extended has all that
        one would have which was longer from the start.
        """
        every = self.recorder.config.evaluation.every
        return bool(every and self.version % every == 0)

    def evaluate(self) -> dict[str, float]:
        """Measure the average of weights as it would be kept now; returns success by suite, as metrics. The best policy
        so far is kept in `best`.
        """
        with self.recorder.pausing():
            if self.overlapped is not None:
                # With overlap stream they act with the trained weights themselves.
                self.overlapped.settle()
            self.trainer.swap_in()
            self.player.show(self.trainer.publish(self.version))
            success = self.evaluator.evaluate_iteration(self.version)
            if self.evaluator.is_best(self.version):
                self.trainer.export(self.directory / BEST)
            self.trainer.swap_out()
            self.player.show(self.trainer.publish(self.version))
        return {f"evaluation/{suite}": rate for suite, rate in success.items()}

    def finish(self) -> None:
        """Keep the average of weights, and measure it."""
        self.trainer.finish_saving()
        self.trainer.swap_in()
        self.trainer.export(self.directory / "policy")
        self.player.show(self.trainer.publish(self.version))
        self.evaluator.evaluate("final", self.directory / "policy", self.version)
        self.recorder.finish(*self.peak_memory())

    def save(self) -> None:
        """Checkpoint the run as it is."""
        state: dict[str, Any] = {"player": self.player.state_dict(), "recorder": self.recorder.state_dict()}
        if self.overlapped is not None:
            state["published"] = [asdict(self.trainer.fetch(weights)) for weights in self.overlapped.published]
        self.trainer.save(self.directory / "checkpoints", self.version, state)
        if self.recorder.stop_asked:
            self.trainer.finish_saving()
        self.saved = self.version
        self.recorder.report()

    def peak_memory(self) -> tuple[float, float]:
        """The most memory that the run's processes have held, each at its own time, in MB: theirs, and of cards."""
        held = [(peak_rss_mb(), peak_gpu_mb())] if self.member is None else [self.member.peak_memory()]
        held += self.cluster.team.peak_memory() if self.cluster else []
        return sum(own for own, _ in held), sum(cards for _, cards in held)

    def go_back(self, lost: MemberLostError) -> None:
        """Go on from the last checkpoint with new members, because some that train were lost.

        Raises:
            MemberLostError: Members were lost again and again.
            PlacementError: Too few machines are left.
        """
        assert self.cluster is not None, "nothing can be lost of a run of one process"
        last = last_whole(self.directory / "checkpoints", _log.warning)
        state = _saved(last, self.recorder.config)
        self.version = self.saved = state["iteration"]
        _log.warning("%s; all members start anew, and go on after iteration %d", lost.brief, self.version)
        if self.overlapped is not None:
            self.overlapped.halt()
        self.cluster.make_again(lost, _start(last, self.base))
        if last is not None:
            self.cluster.go_on(last, self.version)
        if self.overlapped is not None:
            self.overlapped.begin(self.version, _published(self.trainer, state))
        self.recorder.go_back(state["recorder"], self.version)


@contextmanager
def open_run(config: TrainConfig) -> Generator[Run, None, None]:
    """Make or resume the run of a config: load the policy, start the simulators, build the roles.

    Raises:
        TreadleError: A mistake that the user can mend.
    """
    device = choose_device(config.device)
    profile = read_profile(config.runtime.profile) if config.runtime.profile is not None else None
    base = resolve_checkpoint(config.policy.checkpoint).resolve()
    machine = machine_of(device)
    placement = place(config, machine) if config.runtime.address is None else None
    console = RunConsole(config.name, config.iterations)

    def announce(placement: Placement) -> None:
        for line in describe(placement, config):
            console.message(line)
        if placement.machines.kind != CPU or not placement.alone:
            console.message(describe_memory(Plan(config, placement, outline_policy(base, config.policy))))

    with ExitStack() as opened:
        directory = opened.enter_context(hold_run_directory(config, console.message))
        last = last_whole(directory / "checkpoints", console.message)
        state, start = _saved(last, config), _start(last, base)
        asked, preflight, flown = config, None, False
        if config.preflight.episodes:
            preflight = read_preflight(directory, config, begun=last is not None)
            flown = preflight is None
            preflight = preflight or fly(config, base, device, console.message)
            config = at_temperature(config, preflight["temperature"])
        version: int = state["iteration"]
        member: Member | None = None
        cluster: Cluster | None = None
        if placement is not None and placement.alone:
            announce(placement)
            member = opened.enter_context(Member(config, placement, 0, start))
            assert member.crew is not None
            member.begin(member.crew.spec.state_dim)
            player, trainer = member.player, member.trainer
            if last is not None:
                member.load_state_dict(state, last)
        else:
            from treadle.runtime.cluster import run as processes

            cluster = opened.enter_context(processes.Cluster(config, machine, start, announce))
            player, trainer = cluster.players, cluster.trainer
            if last is not None:
                cluster.go_on(last, version)
        overlapped = None
        if config.overlap != "none":
            player = overlapped = OverlappedPlayers(player, config)
            opened.callback(overlapped.close)
            overlapped.begin(version, _published(trainer, state))
        # Only now: if checkpoint or simulator cannot be used, no folder is left behind.
        claim_run_directory(directory, asked)
        if preflight is not None and flown:
            write_preflight(directory, preflight)
        if profile is not None:
            whole = cluster.team.placement if cluster is not None else placement
            assert whole is not None
            write_prediction(directory, config, whole, profile)
        recorder = Recorder(config, directory, trainer.alarms, console)
        evaluator = Evaluator(config, directory, player, console, {} if preflight is None else {"preflight": preflight})
        recorder.load_state_dict(state["recorder"], version)
        # Its tensors are not needed any more.
        del state
        write_machine(directory, str(device))
        opened.enter_context(recorder)
        if preflight is not None and flown and preflight["warning"] is not None:
            _log.warning("%s", preflight["warning"])
        yield Run(directory, base, version, version, player, trainer, evaluator, recorder, member, cluster, overlapped)


def _saved(checkpoint: Path | None, config: TrainConfig) -> dict[str, Any]:
    """The state in a checkpoint, or of a run that begins. Raises CheckpointError, ConfigError."""
    if checkpoint is None:
        return {"iteration": 0, "recorder": {"elapsed": 0.0, "control_steps": 0}}
    state = load_trainer(checkpoint)
    if missing := {"player", "recorder", "algorithm", "average"} - state.keys():
        raise CheckpointError(f"{checkpoint / TRAINER}: no {', '.join(sorted(missing))}; it is of another program")
    if state["iteration"] > config.iterations:
        raise ConfigError(
            f"iterations: found {config.iterations}; this run has had {state['iteration']}, which no setting undoes: "
            f"use iterations={state['iteration']} or more, or begin anew under another name=..."
        )
    return state


def _start(checkpoint: Path | None, base: Path) -> Start:
    return Start(base, checkpoint / "policy" if checkpoint else base)


def _published(trainer: Trainers, state: Mapping[str, Any]) -> list[Any]:
    """The weights that a run goes on with: those that it was saved with, and the latest."""
    earlier = [trainer.put(Weights(**weights)) for weights in state.get("published", ())]
    return [*earlier, trainer.publish(state["iteration"])]


def machine_of(device: torch.device) -> Machines:
    """The devices of this machine that a run on `device` may use: one where it has a number, else all of its kind."""
    if device.type == CPU:
        return Machines(CPU, (usable_cores(),))
    if device.type != "cuda" or device.index is not None:
        return Machines(device.type, ((device.index or 0,),))
    return Machines("cuda", (tuple(range(torch.cuda.device_count())),))
