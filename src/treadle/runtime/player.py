"""The player: it simulates and decides, with the latest weights that it was given."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.data.span import Span
from treadle.errors import ConfigError
from treadle.policies.critic import Critic
from treadle.policies.protocol import Policy, Sampling
from treadle.rollout.actor import Actor
from treadle.rollout.collector import Collector
from treadle.rollout.sources import ScenarioStream
from treadle.runtime.weights import Weights, load_state
from treadle.workers.crew import Crew
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session


class Player:
    """A policy with its simulators beside it.

    Args:
        config: the run's settings.
        crew: the simulators; other sessions may use it between two rollouts.
        policy: it acts; the trainer's own policy, or a copy that `receive` keeps up to date.
        critic: it values observations; the trainer's own or a copy, likewise.
    """

    def __init__(self, config: TrainConfig, crew: Crew, policy: Policy, critic: Critic) -> None:
        self.crew = crew
        self.policy = policy
        self.version = 0
        """How many updates the policy has had."""
        self._critic = critic
        self._decisions = config.decisions
        needs = config.needs
        stream = ScenarioStream(
            crew.count("train", "train"),
            config.simulator.slots,
            config.seed,
            group_size=needs.group_size,
            partial_reset=needs.partial_reset,
        )
        session = Session(config.simulator.horizon, needs.keep_final)
        self._collector = Collector(
            Lanes(crew, session, stream, policy.chunk),
            stream,
            Actor(policy, Sampling(**config.policy.sampling.model_dump()), encode=config.policy.freeze_vision),
            critic,
            batch=config.collection.batch,
            cores=config.collection.generate_cores,
            next_inputs=needs.next_inputs,
        )

    def collect(self, wants_more: Callable[[Sequence[Rollout]], bool]) -> list[Rollout]:
        """Rollouts of the policy as it is, until no more are wanted.

        Raises:
            TreadleError: What a worker raised, or SimulatorError where it died or took too long.
        """
        rollouts: list[Rollout] = []
        while wants_more(rollouts):
            rollouts.append(self._collector.collect(self._decisions, self.version))
        return rollouts

    def receive(self, weights: Weights) -> None:
        """Act with these weights from now on."""
        self.version = weights.version
        if weights.policy is not None:
            load_state(self.policy, weights.policy)
        if weights.critic is not None:
            assert isinstance(self._critic, nn.Module)
            load_state(self._critic, weights.critic)

    def take_spans(self) -> list[Span]:
        """When simulator and policy were busy since the last call."""
        return self._collector.take_spans()

    def state_dict(self) -> dict[str, Any]:
        """Where every slot stands, as plain data."""
        return self._collector.state_dict()

    def load_state_dict(self, state: dict[str, Any], version: int) -> None:
        """Go on from `state`, with a policy that has had `version` updates."""
        self.version = version
        self._collector.load_state_dict(state)


def check_decisions(config: TrainConfig, chunk: int) -> None:
    """Without partial reset, a rollout must hold whole episodes. Raises ConfigError."""
    wanted = -(-config.simulator.horizon // chunk)
    if not config.needs.partial_reset and config.decisions < wanted:
        raise ConfigError(
            f"decisions {config.decisions} with algorithm.partial_reset false: a rollout holds whole episodes, of "
            f"simulator.horizon {config.simulator.horizon} control steps at {chunk} per decision; use "
            f"decisions={wanted}"
        )
