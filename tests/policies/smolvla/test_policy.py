"""A SmolVLA acts by its keys, and says of its decisions what it said when it made them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from treadle.data.noise import noise_key
from treadle.errors import ConfigError
from treadle.policies.flow_matching.chain import integrate, transition
from treadle.policies.flow_matching.transitions import Transitions
from treadle.policies.sampling import Sampling
from treadle.policies.smolvla import SmolVLA
from treadle.policies.smolvla.inputs import SmolVLAInputs

Load = Callable[..., SmolVLA]
Prepare = Callable[[SmolVLA], SmolVLAInputs]
NOISY, STILL = Sampling(), Sampling(temperature=0)
KEYS = noise_key(5, torch.arange(3).numpy())
METHODS: list[dict[str, Any]] = [
    {"noise": "sde"},
    {"noise": "sde", "drawn": "all", "counted": "all"},
    {"noise": "sde", "counted": "all", "joined": "mean"},
    {"noise": "cps"},
    {"noise": "learned"},
    {"noise": "learned", "joined": "mean"},
    {"noise": "learned", "drawn": "last"},
]


@pytest.fixture(params=METHODS, ids=lambda settings: "-".join(settings.values()))
def policy(request: pytest.FixtureRequest, load: Load) -> SmolVLA:
    """Of float32 weights; C 3 of H 6, K 4."""
    made = load(dtype=torch.float32, chunk=3, **request.param)
    if made.noise_head is not None:
        torch.nn.init.normal_(made.noise_head.last.weight, generator=torch.Generator().manual_seed(0))
    return made


def test_packed_transitions_are_the_same_again():
    chain = torch.randn(2, 5, 3, 2)
    steps = Transitions.of(chain, torch.tensor([3, 1]), 1)
    assert torch.equal(steps.states[0], chain[0, 3:])
    assert torch.equal(steps.states[1], chain[1, 1:3])
    again = Transitions.unpack(steps.pack(), 3, 2)
    assert torch.equal(again.states, steps.states)
    assert again.first.tolist() == [3, 1]
    assert steps.pack().shape == (2, Transitions.numbers(1, 3, 2))


def test_log_probs_are_those_of_acting(policy: SmolVLA, prepare: Prepare):
    inputs = prepare(policy)
    decision = policy.act(inputs, NOISY, KEYS)
    found = policy.evaluate(inputs, decision.choice, NOISY)
    assert torch.equal(found.log_probs, decision.log_probs)
    assert decision.log_probs.shape == (3, *policy.entries)
    assert decision.actions.shape == (3, 3, 3)
    assert bool(torch.isfinite(found.entropy).all())


def test_ratios_are_one_in_another_batch_and_order(policy: SmolVLA, prepare: Prepare):
    inputs = prepare(policy)
    decision = policy.act(inputs, NOISY, KEYS)
    order = torch.tensor([2, 0])
    found = policy.evaluate(policy.encode(inputs).take(order), decision.choice[order], NOISY)
    ratio = (found.log_probs - decision.log_probs[order]).sum((1, 2)).exp()
    assert torch.allclose(ratio, torch.ones(2), atol=2e-4)
    for b in range(3):
        rows = torch.tensor([b])
        alone = policy.evaluate(inputs.take(rows), decision.choice[rows], NOISY)
        gap = (alone.log_probs - decision.log_probs[rows]).abs().max()
        assert gap < 1e-4


def test_log_probs_are_normal_densities(policy: SmolVLA, prepare: Prepare):
    inputs = prepare(policy)
    settings, sizes = policy.found.settings, policy.found.sizes
    with torch.no_grad():
        decision = policy.act(inputs, NOISY, KEYS)
        steps = Transitions.unpack(decision.choice, sizes.chunk, sizes.action)
        total = torch.zeros(3, sizes.chunk, sizes.action)
        count = steps.states.shape[1] - 1
        for j in range(count):
            x, after, index = steps.states[:, j], steps.states[:, j + 1], steps.first + j
            t = 1 - index / policy.noise.steps
            learned = None
            if policy.noise_head is not None:
                hidden = policy.model.expert_states(policy.read_prefix(inputs), x, t)
                learned = policy.noise_head(hidden)
            mean, deviation = transition(x, policy.velocities(inputs, x, t), index, policy.noise, learned)
            moved = deviation > 0
            total += torch.where(moved, Normal(mean, torch.where(moved, deviation, 1)).log_prob(after), 0)
    if settings.joined == "mean":
        total = total / count
    wanted = total.flatten(1)[:, None] if settings.counted == "all" else total[:, :3, :3]
    assert torch.allclose(decision.log_probs, wanted, atol=1e-4)


def test_actions_are_the_end_of_the_chain(load: Load, prepare: Prepare):
    policy = load(dtype=torch.float32, noise="sde", drawn="all")
    inputs = prepare(policy)
    decision = policy.act(inputs, NOISY, KEYS)
    end = Transitions.unpack(decision.choice, 6, 8).states[:, -1]
    assert torch.equal(decision.actions, policy.actions_of(end))


def test_randomness_belongs_to_keys(policy: SmolVLA, prepare: Prepare):
    inputs = prepare(policy)
    for sampling in (NOISY, STILL):
        whole = policy.act(inputs, sampling, KEYS)
        other = policy.act(inputs.take(torch.tensor([1])), sampling, KEYS[1:2])
        assert torch.allclose(other.actions, whole.actions[1:2], atol=1e-4)
        assert torch.equal(policy.act(inputs, sampling, KEYS).actions, whole.actions)
        assert not torch.allclose(policy.act(inputs, sampling, KEYS[::-1]).actions, whole.actions, atol=1e-2)
        assert not torch.allclose(policy.act(inputs, sampling).actions, whole.actions, atol=1e-2)
    with pytest.raises(ConfigError, match="keys: 2 for 3 samples"):
        policy.act(inputs, NOISY, KEYS[:2])


def test_without_noise_the_chain_starts_where_it_does_with_noise(load: Load, prepare: Prepare):
    policy = load(dtype=torch.float32, noise="sde", drawn="all")
    inputs = prepare(policy)
    start = Transitions.unpack(policy.act(inputs, NOISY, KEYS).choice, 6, 8).states[:, 0]
    with torch.no_grad():
        end = integrate(lambda x, t: policy.velocities(inputs, x, t), start, 4)
    still = policy.act(inputs, STILL, KEYS)
    assert torch.equal(still.actions, policy.actions_of(end))
    assert not still.log_probs.any()


def test_what_noise_does_not_have_is_refused(load: Load, prepare: Prepare):
    policy = load()
    inputs = prepare(policy)
    choice = policy.act(inputs, NOISY, KEYS).choice
    for sampling in (Sampling(top_k=3), Sampling(top_p=0.5)):
        with pytest.raises(ConfigError, match="a temperature, which multiplies its noise, without top_k and top_p"):
            policy.act(inputs, sampling, KEYS)
    with pytest.raises(ConfigError, match="nothing is learned"):
        policy.evaluate(inputs, choice, STILL)
    with pytest.raises(ConfigError, match=r"choice \[2, 97\]; it must be \[3, 97\]"):
        policy.evaluate(inputs, choice[:2], NOISY)
    with pytest.raises(ConfigError, match=r"policy\.options\.level, times the temperature: found 0;"):
        load(level=0.0)


def test_settings_that_do_not_fit(load: Load, prepare: Prepare):
    with pytest.raises(ConfigError, match="cameras: found 3; allowed: at most 2"):
        load(cameras=3)
    with pytest.raises(ConfigError, match="smaller bound first"):
        load(noise="learned", deviation=[0.2, 0.1])
    with pytest.raises(ConfigError, match=r"drawn: found 'last' .* whose last step has no noise"):
        load(noise="cps", drawn="last")
    with pytest.raises(ConfigError, match="unknown key 'stepz'"):
        load(stepz=3)
    with pytest.raises(ConfigError, match="frames of 2 cameras, the policy sees 1"):
        prepare(load(cameras=1))


def test_what_it_says_of_itself_and_the_temperatures_it_offers(load: Load):
    facts = {"kind": "smolvla", "chunk": 3, "action_dim": 3, "predicted": 6, "steps": 5}
    sde = load(chunk=3, steps=5, level=0.3)
    assert sde.describe() == facts | {"noise": "sde", "drawn": "one", "level": 0.3}
    assert sde.temperatures == (0.5, 1.0, 1.5, 2.0, 3.0)
    learned = load(chunk=3, steps=5, noise="learned")
    assert learned.describe() == facts | {"noise": "learned", "drawn": "all", "deviation": [0.08, 0.16]}
    assert load(noise="cps", level=0.6).temperatures == (0.5, 1.0, 1.5)


def test_deviations_keep_their_bounds(load: Load):
    head = load(noise="learned", deviation=[0.02, 0.5]).noise_head
    assert head is not None
    hidden = torch.randn(2, 6, 36)
    assert torch.allclose(head(hidden), torch.full((2, 6, 8), math.sqrt(0.02 * 0.5)))
    torch.nn.init.constant_(head.last.bias, 50.0)
    assert torch.allclose(head(hidden), torch.full((2, 6, 8), 0.5))


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_prefix_that_is_kept_gives_the_same(load: Load, prepare: Prepare, dtype: torch.dtype | None):
    """Also the same gradients: the column of the state is read again, for its projection is trained."""
    policy = load(dtype=dtype)
    policy.add_value_head(1)
    assert policy.value_head is not None
    torch.nn.init.ones_(policy.value_head.last.weight)
    inputs = prepare(policy)
    kept = policy.encode(inputs)
    assert kept.tensors().keys() == {"state", "ids", "mask", "keys", "cached_values"}
    choice = policy.act(inputs, NOISY, KEYS).choice
    policy.freeze()
    found = []
    for each in (inputs, kept):
        policy.zero_grad()
        result = policy.evaluate(each, choice, NOISY)
        assert result.values is not None
        (result.log_probs.sum() + result.values.sum()).backward()
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        found.append((result.log_probs.detach(), result.values.detach(), gradients))
    (one, value, left), (other, same, right) = found
    assert left.keys() == right.keys()
    assert bool(left["model.state_proj.weight"].any())
    if dtype is None:
        assert torch.equal(one, other)
        assert torch.equal(value, same)
    # In float32, products of one column are not rounded as those of many are.
    assert torch.allclose(one, other, atol=1e-4)
    assert torch.allclose(value, same, rtol=1e-4)
    for name, gradient in left.items():
        rounding = 1e-4 if dtype is not None else 0.02 if "state_proj" in name else 1e-6
        assert (gradient - right[name]).norm() <= rounding * gradient.norm(), name


def test_features_are_kept_where_the_language_model_is_trained(load: Load, prepare: Prepare):
    policy = load(dtype=torch.float32, trained="language")
    inputs = prepare(policy)
    kept = policy.encode(inputs)
    assert kept.tensors().keys() == {"state", "ids", "mask", "features"}
    choice = policy.act(inputs, NOISY, KEYS).choice
    assert torch.equal(policy.evaluate(inputs, choice, NOISY).log_probs, policy.evaluate(kept, choice, NOISY).log_probs)


def names(policy: SmolVLA, **settings: Any) -> set[str]:
    policy.freeze(**settings)
    return {name for name, p in policy.named_parameters() if p.requires_grad}


def test_what_is_trained(load: Load, prepare: Prepare):
    policy = load(dtype=torch.float32)
    policy.add_value_head(1)
    expert = names(policy)
    assert all("vlm_with_expert.vlm" not in name for name in expert)
    assert {"model.state_proj.weight", "value_head.last.bias"} <= expert
    assert {name for name in names(policy, vision=False) if "vision_model" in name}
    language = load(dtype=torch.float32, trained="language")
    more = names(language) - expert
    assert more
    assert all("text_model.layers" in name or "embed_tokens" in name for name in more)


@pytest.mark.parametrize("vision", [True, False])
def test_everything_that_is_trained_gets_a_gradient(load: Load, prepare: Prepare, vision: bool):
    policy = load(dtype=torch.float32)
    inputs = prepare(policy)
    policy.freeze(vision=vision)
    targets = torch.randn(3, 6, 8)
    policy.supervised_loss(inputs, targets, generator=torch.Generator().manual_seed(0)).backward()
    without = [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_the_supervised_loss_is_that_of_velocities(load: Load, prepare: Prepare):
    policy = load(dtype=torch.float32)
    inputs, actions = prepare(policy), torch.randn(3, 6, 3)
    targets = policy.targets(actions)
    assert policy.found.scales is not None
    wanted = (actions - policy.found.scales.action.first) / (policy.found.scales.action.second + 1e-8)
    assert torch.equal(targets[..., :3], wanted)
    assert not targets[..., 3:].any()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(targets.shape, generator=generator)
    # Beta(1.5, 1) has the distribution function x^1.5.
    t = 0.999 * torch.rand(3, generator=generator) ** (1 / 1.5) + 0.001
    x = t[:, None, None] * noise + (1 - t[:, None, None]) * targets
    velocity: Tensor = policy.velocities(inputs, x, t)
    found = policy.supervised_loss(inputs, targets, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(found, (noise - targets - velocity).square().mean())
    with pytest.raises(ConfigError, match="label_width"):
        policy.supervised_loss(inputs, targets, label_width=1.0)


def test_places_that_do_not_count_are_left_out_of_the_loss(load: Load, prepare: Prepare):
    policy = load(dtype=torch.float32)
    inputs, targets = prepare(policy), torch.randn(3, 6, 8)
    counted = torch.tensor([[True] * 6, [True] * 2 + [False] * 4, [True] + [False] * 5])

    def loss(mask: Tensor | None) -> Tensor:
        return policy.supervised_loss(inputs, targets, generator=torch.Generator().manual_seed(1), counted=mask)

    assert loss(torch.ones_like(counted)).item() == pytest.approx(loss(None).item(), rel=1e-6)
    single = [torch.zeros_like(counted) for _ in range(9)]
    for mask, (row, place) in zip(single, counted.nonzero().tolist(), strict=True):
        mask[row, place] = True
    by_hand = torch.stack([loss(mask) for mask in single]).mean()
    assert loss(counted).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_heads_are_saved_beside_the_published_files(load: Load, prepare: Prepare, tmp_path: Any):
    policy = load(dtype=torch.float32, noise="learned")
    policy.add_value_head(1)
    for head in (policy.value_head, policy.noise_head):
        assert head is not None
        torch.nn.init.normal_(head.last.weight)
    policy.save(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").glob("*_head.safetensors")} == {
        "value_head.safetensors",
        "noise_head.safetensors",
    }
    again = load(tmp_path / "saved")
    one, other = (each.act(prepare(each), NOISY, KEYS) for each in (policy, again))
    assert one.values is not None
    assert other.values is not None
    assert bool(one.values.any())
    assert torch.equal(one.actions, other.actions)
    assert torch.equal(one.log_probs, other.log_probs)
    assert torch.allclose(one.values, other.values)
    with pytest.raises(ConfigError, match="no value head"):
        load().values(prepare(load()))
