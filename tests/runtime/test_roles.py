"""Roles pass plain data: a player with a copy of the policy plays as one that shares the trainer's."""

import copy
import pickle
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fake_lanes import assert_same
from miniature import run_config
from treadle.config.schema import CriticConfig
from treadle.data.rollout import Rollout
from treadle.policies import load_policy
from treadle.runtime.member import build_critic
from treadle.runtime.player import Player
from treadle.runtime.trainer import Trainer
from treadle.runtime.weights import Weights
from treadle.training.algorithm import Training
from treadle.workers.crew import Crew
from treadle.workers.plan import plan_crew

pytestmark = pytest.mark.integration
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["value_head", "privileged"])
def test_published_weights_are_all_that_a_player_needs(tmp_path: Path, checkpoint: Path, kind: str):
    config = run_config(tmp_path, checkpoint, critic=CriticConfig(kind=kind, width=16, warmup_iterations=0))  # type: ignore[arg-type]
    with ExitStack() as opened:
        here, there = (
            opened.enter_context(Crew(plan_crew(config.simulator, config.collection, accelerated=False)))
            for _ in range(2)
        )
        torch.manual_seed(0)
        policy = load_policy(checkpoint, device="cpu")
        critic = build_critic(config, policy, here.spec.state_dim, CPU)
        # What another process would hold: copies, that change by what is published alone.
        policy_there = copy.deepcopy(policy)
        trainer = Trainer(Training(policy, critic, config, CPU, lambda: policy), shared=False)
        policy_there.freeze(vision=config.policy.freeze_vision)
        sharing, copying = Player(config, here, policy), Player(config, there, policy_there)
        for version in range(3):
            rollouts = sharing.collect(trainer.wants_more)
            (received,) = copying.collect(lambda rollouts: not rollouts)
            assert_same(replace(rollouts[0], selected=None), received)
            assert received.versions.unique().tolist() == [version]
            trainer.update([pickle.loads(pickle.dumps(received))], version)
            weights: Weights = pickle.loads(pickle.dumps(trainer.publish(version + 1)))
            assert weights.policy
            before = {name: x.clone() for name, x in policy_there.state_dict().items()}
            copying.receive(weights)
            sharing.receive(Weights(version + 1))
            changed = [name for name, x in policy_there.state_dict().items() if not torch.equal(x, before[name])]
            assert changed
            assert all(torch.equal(x, policy_there.state_dict()[name]) for name, x in policy.state_dict().items())


def test_a_player_collects_until_no_more_is_wanted(tmp_path: Path, checkpoint: Path):
    config = run_config(tmp_path, checkpoint)
    asked: list[int] = []

    def wants_more(rollouts: "list[Rollout]") -> bool:
        asked.append(len(rollouts))
        return len(rollouts) < 3

    with Crew(plan_crew(config.simulator, config.collection, accelerated=False)) as crew:
        policy = load_policy(checkpoint, device="cpu")
        build_critic(config, policy, crew.spec.state_dim, CPU)
        player = Player(config, crew, policy)
        assert len(player.collect(wants_more)) == 3  # type: ignore[arg-type]
    assert asked == [0, 1, 2, 3]
