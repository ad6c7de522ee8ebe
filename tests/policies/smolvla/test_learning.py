"""Tiny flow policies learn through the losses of every policy: nothing from a constant reward, something from another.

Shapes: B samples.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes import scenario
from miniature import IMAGE, INSTRUCTIONS, learning_config, make_rollout
from treadle.algorithms.losses import PolicyBatch, PolicyObjective, policy_loss
from treadle.config.supervised import TinyModelConfig
from treadle.data.noise import noise_key
from treadle.data.step import EpisodeResult
from treadle.policies.flow_matching.chain import integrate
from treadle.policies.flow_matching.transitions import Transitions
from treadle.policies.sampling import Sampling
from treadle.policies.smolvla import SmolVLA
from treadle.simulators.protocol import SimulatorSpec, tool_motions
from treadle.supervised.grounding import Groundable
from update_samples import make_ppo, weights

SPEC = SimulatorSpec("table", ("front",), IMAGE, IMAGE, tool_motions(0.02), 7, 5, 8, 5.0)
MODEL = TinyModelConfig(kind="smolvla", width=32, mlp=64, tower_widths=((8, 16), (8, 16)), chunk=2)
SCALE = {"mean": [0.1] * 7, "std": [0.5] * 7}
METHODS = [
    {},
    {"counted": "all"},
    {"drawn": "all"},
    {"noise": "cps"},
    {"noise": "learned", "counted": "all"},
    {"noise": "learned", "drawn": "last"},
]
NOISY = Sampling()


def make_tiny(**settings: Any) -> SmolVLA:
    made = SmolVLA.create_tiny(MODEL, SPEC, INSTRUCTIONS, {"action": SCALE, "proprio": SCALE})
    made.configure(made.found.settings.model_copy(update=settings))
    return made


@pytest.fixture(params=METHODS, ids=lambda settings: "-".join(settings.values()) or "sde")
def policy(request: pytest.FixtureRequest) -> SmolVLA:
    made = make_tiny(trained="expert", **request.param)
    made.add_value_head(1)
    return made


def test_a_tiny_policy_is_saved_and_loaded(tmp_path: Path):
    made = make_tiny()
    made.save(tmp_path / "tiny")
    again = SmolVLA.load(tmp_path / "tiny", device=torch.device("cpu"), dtype=None, trained="expert", level=0.3)
    assert (made.chunk, made.predicted, made.action_dim, made.noise.steps) == (2, 4, 7, 4)
    assert again.found.settings == made.found.settings.model_copy(update={"trained": "expert", "level": 0.3})
    one, other = (make_rollout(each, 1, 3, sampling=Sampling(temperature=0)) for each in (made, again))  # pyright: ignore[reportArgumentType]
    assert torch.equal(one.choices, other.choices)
    assert isinstance(made, Groundable)


def test_what_it_sees_is_trained_apart(tmp_path: Path):
    made = make_tiny()
    frozen = {id(p) for p in made.vision_parts().parameters()}
    assert not frozen & {id(p) for p in made.freeze()["policy"]}
    rollout = make_rollout(made, 1, 3)  # pyright: ignore[reportArgumentType]
    inputs = rollout.inputs.of({name: x[0] for name, x in rollout.inputs.tensors().items()})
    assert set(inputs.tensors()) == {"state", "ids", "mask", "features"}
    hidden = made.instructed_states(inputs, INSTRUCTIONS[:1] * 3, torch.Generator().manual_seed(0))  # pyright: ignore[reportArgumentType]
    assert hidden.shape == (3, 4, made.width)


def test_imitation_lowers_its_loss():
    made = make_tiny()
    parameters = made.freeze(vision=False)["policy"]
    rollout = make_rollout(made, 1, 8, encode=False)  # pyright: ignore[reportArgumentType]
    inputs: Any = rollout.inputs.of({name: x[0] for name, x in rollout.inputs.tensors().items()})
    targets = made.targets(torch.rand(8, made.predicted, 7, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.Adam(parameters, 3e-3)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(150):
        loss = made.supervised_loss(inputs, targets, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def update(policy: SmolVLA, change: Callable[[Any], None], **algorithm: Any) -> tuple[dict[str, float], set[str]]:
    """Metrics of one update by a changed rollout, and the weights that it moved beside the value head's."""
    rollout = make_rollout(policy, 3, 4)  # pyright: ignore[reportArgumentType]
    change(rollout)
    level = {"reward_level": "chunk", "ratio_level": "chunk"}
    config = learning_config(algorithm={**level, **algorithm}, optimizer={"weight_decay": 0.0})
    ppo = make_ppo(policy, config)
    before = weights(policy)
    metrics = ppo.update([rollout], iteration=3)
    moved = {name for name, x in policy.state_dict().items() if not torch.equal(x, before[name])}
    return metrics, {name for name in moved if not name.startswith("value_head.")}


def one_decision_each(rollout: Any, reward: Tensor | float = 1.0) -> None:
    """Every decision is an episode that earns `reward`."""
    shape = rollout.reward.shape
    rollout.valid = torch.ones(shape, dtype=torch.bool)
    rollout.truncated = torch.zeros(shape, dtype=torch.bool)
    rollout.terminated = torch.zeros(shape, dtype=torch.bool)
    rollout.terminated[..., -1] = True
    rollout.reward = torch.zeros(shape)
    rollout.reward[..., -1] = reward
    rollout.values = torch.zeros(*shape[:2], 1)
    rollout.final_values = torch.zeros(shape[:2])


@pytest.mark.parametrize("level", ["token", "chunk"])
def test_a_constant_reward_moves_nothing(policy: SmolVLA, level: str):
    _, moved = update(policy, one_decision_each, ratio_level=level)
    assert not moved


def test_equal_episodes_of_groups_move_nothing(policy: SmolVLA):
    def equal(rollout: Any) -> None:
        one_decision_each(rollout)
        rollout.episodes = [EpisodeResult(scenario(0), True, True, 1.0, 2) for _ in range(4)]

    _, moved = update(policy, equal, kind="grpo", group_size=4)
    assert not moved


def test_another_reward_moves_the_expert_alone(policy: SmolVLA):
    metrics, moved = update(policy, lambda r: one_decision_each(r, torch.arange(12.0).reshape(3, 4)))
    assert moved
    assert not any("vlm_with_expert.vlm." in name for name in moved)
    assert "model.state_proj.weight" in moved
    # Before the first step, the trainer computes what acting did.
    assert metrics["update/log_prob_gap"] < 1e-4


def scores(policy: SmolVLA, *advantages: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """For each advantage, [10, D] gradients of the policy's loss by the last bias, of batches of 256 decisions on one
    observation.
    """
    rollout = make_rollout(policy, 1, 1)  # pyright: ignore[reportArgumentType]
    inputs: Any = rollout.inputs.of({n: x[0].expand(256, *x.shape[2:]) for n, x in rollout.inputs.tensors().items()})
    valid = torch.ones(256, policy.chunk, dtype=torch.bool)
    objective = PolicyObjective("chunk", policy.entries, 0.2, 0.2)
    policy.requires_grad_(False)
    bias = policy.model.action_out_proj.bias.requires_grad_()
    found: list[list[Tensor]] = [[] for _ in advantages]
    for batch in range(10):
        keys = noise_key(batch, torch.arange(256).numpy())
        decision = policy.act(inputs, NOISY, keys)
        evaluation = policy.evaluate(inputs, decision.choice, NOISY)
        for advantage, gradients in zip(advantages, found, strict=True):
            own = advantage(decision.actions)
            chunk = PolicyBatch(evaluation.log_probs, decision.log_probs, evaluation.entropy, own, valid)
            gradients += torch.autograd.grad(policy_loss(chunk, objective)[0], bias, retain_graph=True)
    return [torch.stack(gradients) for gradients in found]


@pytest.mark.parametrize("settings", [{}, {"drawn": "all", "counted": "all"}, {"noise": "learned"}])
def test_the_expected_gradient_of_a_constant_advantage_is_zero(settings: dict[str, Any]):
    """Monte Carlo over 2560 decisions: within four standard errors. Of an advantage that grows with the first number of
    the first action, the gradient of that number's bias is beyond them.
    """
    policy = make_tiny(trained="expert", **settings)
    found, growing = scores(
        policy,
        lambda actions: torch.ones(len(actions)),
        lambda actions: actions[:, 0, 0] - actions[:, 0, 0].mean(),
    )
    error = found.std(0) / len(found) ** 0.5
    assert bool((found.mean(0).abs() <= 4 * error).all())
    other = growing[:, 0]
    assert other.mean().abs() > 4 * other.std() / len(other) ** 0.5


def test_later_actions_never_move_earlier_ones():
    """So, without padding, log-probs of executed actions are all that they depend on."""
    made = make_tiny()
    rollout = make_rollout(made, 1, 3)  # pyright: ignore[reportArgumentType]
    inputs: Any = rollout.inputs.of({name: x[0] for name, x in rollout.inputs.tensors().items()})
    start = torch.randn(3, made.predicted, 7, generator=torch.Generator().manual_seed(0))
    other = start.clone()
    other[:, made.chunk :] += 1
    with torch.no_grad():
        ends = [integrate(lambda x, t: made.velocities(inputs, x, t), x, 4) for x in (start, other)]
    assert torch.equal(ends[0][:, : made.chunk], ends[1][:, : made.chunk])
    assert not torch.equal(ends[0], ends[1])


@pytest.mark.parametrize(("noise", "moves"), [("learned", True), ("sde", False)])
def test_an_entropy_bonus_moves_a_learned_deviation_alone(noise: str, moves: bool):
    """Upwards; that of a level is a constant."""
    made = make_tiny(trained="expert", noise=noise)
    made.add_value_head(1)
    if made.noise_head is not None:
        # Its last layer starts at zero, and passes nothing on.
        torch.nn.init.normal_(made.noise_head.last.weight, std=0.1)
    before = None if made.noise_head is None else made.noise_head.last.bias.detach().clone()
    _, moved = update(made, one_decision_each, entropy_coefficient=1.0)
    assert bool(moved) == moves
    assert ("noise_head.last.bias" in moved) == moves
    if made.noise_head is not None:
        assert before is not None
        assert bool((made.noise_head.last.bias > before).all())


def test_decisions_keep_one_step_or_all():
    for settings, count in (({}, 1), ({"drawn": "last"}, 1), ({"drawn": "all"}, 4)):
        made = make_tiny(**settings)
        rollout = make_rollout(made, 1, 2)  # pyright: ignore[reportArgumentType]
        assert rollout.choices.shape[-1] == Transitions.numbers(count, 4, 7)
