"""From a configuration to the roles of a run, new or resumed."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from treadle.config.loading import resolve_checkpoint
from treadle.config.run_directory import create_run_directory
from treadle.config.schema import TrainConfig
from treadle.devices import choose_device, prepare_cpu
from treadle.errors import ConfigError
from treadle.policies.critic import Critic, NoCritic, PrivilegedCritic, ValueHeadCritic
from treadle.policies.load import load_configured
from treadle.policies.protocol import Policy
from treadle.reporting.machine import write_machine
from treadle.runtime.evaluator import Evaluator
from treadle.runtime.player import Player, check_decisions
from treadle.runtime.recorder import Recorder
from treadle.runtime.trainer import Trainer
from treadle.training.algorithm import Training
from treadle.training.checkpoints import list_checkpoints, load_trainer
from treadle.training.finetuning import load_trainable
from treadle.workers.crew import Crew, check_dimensions
from treadle.workers.plan import plan_crew


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
    prepare_cpu(config.torch_threads)
    device = choose_device(config.device)
    base = resolve_checkpoint(config.policy.checkpoint)
    checkpoints = list_checkpoints(config.output / config.name / "checkpoints")
    state = load_trainer(checkpoints[-1]) if checkpoints else None
    # Player and trainer are in one process and share one policy.
    torch.manual_seed(config.seed)
    start = checkpoints[-1] / "policy" if checkpoints else base
    policy = load_trainable(start, config.policy, device, freeze_vision=config.policy.freeze_vision)
    check_decisions(config, policy.chunk)
    with ExitStack() as opened:
        plan = plan_crew(config.simulator, config.collection, accelerated=device.type != "cpu")
        crew = opened.enter_context(Crew(plan))
        check_dimensions(crew, policy.action_dim)
        critic = build_critic(config, policy, crew.spec.state_dim, device)
        # Only now: if checkpoint or simulator cannot be used, no folder is left behind.
        directory = create_run_directory(config)

        def load_reference() -> Policy:
            return load_configured(base, config.policy, device=str(device)).eval()

        player = Player(config, crew, policy, critic)
        trainer = Trainer(Training(policy, critic, config, device, load_reference))
        recorder = Recorder(config, directory, trainer.algorithm.alarms)
        evaluator = Evaluator(config, directory, crew, policy, recorder.console)
        version = 0
        if state is not None:
            version = state["iteration"]
            trainer.load_state_dict(state)
            player.load_state_dict(state["player"], version)
            recorder.load_state_dict(state["recorder"], version)
        write_machine(directory, str(device))
        opened.enter_context(recorder)
        yield Run(directory, base, version, player, trainer, evaluator, recorder)


def build_critic(config: TrainConfig, policy: Policy, state_dim: int, device: torch.device) -> Critic:
    """The critic that a config asks for, or its stand-in.

    Raises:
        ConfigError: A privileged critic on a simulator without privileged state.
    """
    needs = config.needs
    if not needs.values:
        return NoCritic()
    outputs = policy.chunk if needs.values_per_action else 1
    if config.critic.kind == "value_head":
        if policy.value_outputs != outputs:
            policy.add_value_head(outputs)
        return ValueHeadCritic(policy)
    if state_dim == 0:
        raise ConfigError(
            f"critic.kind 'privileged': the simulator {config.simulator.name!r} offers no privileged state; "
            "use critic.kind=value_head"
        )
    return PrivilegedCritic(state_dim, outputs, config.critic.width).to(device)
