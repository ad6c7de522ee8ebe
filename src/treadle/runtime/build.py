"""From a configuration to the roles of a run, new or resumed."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from treadle.config.loading import resolve_checkpoint
from treadle.config.run_directory import create_run_directory
from treadle.config.schema import TrainConfig
from treadle.cores import usable_cores
from treadle.devices import choose_device
from treadle.reporting.machine import write_machine
from treadle.runtime.evaluator import Evaluator
from treadle.runtime.member import Member, Start
from treadle.runtime.placement import CPU, Machines, place
from treadle.runtime.player import Player
from treadle.runtime.recorder import Recorder
from treadle.runtime.trainer import Trainer
from treadle.training.checkpoints import list_checkpoints, load_trainer


@dataclass(frozen=True, slots=True)
class Run:
    """The roles of a run, and where they stand."""

    directory: Path
    base: Path
    """The checkpoint that training starts from."""
    version: int
    """Iterations done."""
    player: Player
    trainer: Trainer
    evaluator: Evaluator
    recorder: Recorder

    def save(self, version: int) -> None:
        """Checkpoint the run as it is."""
        state = {"player": self.player.state_dict(), "recorder": self.recorder.state_dict()}
        self.trainer.save(self.directory / "checkpoints", version, state)


@contextmanager
def open_run(config: TrainConfig) -> Generator[Run, None, None]:
    """Make or resume the run of a config: load the policy, start the simulators, build the roles.

    Raises:
        TreadleError: A mistake that the user can mend.
    """
    device = choose_device(config.device)
    base = resolve_checkpoint(config.policy.checkpoint)
    placement = place(config, machine_of(device))
    checkpoints = list_checkpoints(config.output / config.name / "checkpoints")
    state = load_trainer(checkpoints[-1]) if checkpoints else None
    start = Start(base, checkpoints[-1] / "policy" if checkpoints else base)
    with ExitStack() as opened:
        member = opened.enter_context(Member(config, placement, 0, start))
        assert member.crew is not None
        member.begin(member.crew.spec.state_dim)
        # Only now: if checkpoint or simulator cannot be used, no folder is left behind.
        directory = create_run_directory(config)
        recorder = Recorder(config, directory, member.trainer.alarms)
        evaluator = Evaluator(config, directory, member.crew, member.policy, recorder.console)
        if state is not None:
            member.load_state_dict(state)
            recorder.load_state_dict(state["recorder"], state["iteration"])
        write_machine(directory, str(member.device))
        opened.enter_context(recorder)
        version = state["iteration"] if state is not None else 0
        yield Run(directory, base, version, member.player, member.trainer, evaluator, recorder)


def machine_of(device: torch.device) -> Machines:
    """The devices of this machine that a run on `device` may use: one where it has a number, else all of its kind."""
    if device.type == CPU:
        return Machines(CPU, (usable_cores(),))
    if device.type != "cuda" or device.index is not None:
        return Machines(device.type, ((device.index or 0,),))
    return Machines("cuda", (tuple(range(torch.cuda.device_count())),))
