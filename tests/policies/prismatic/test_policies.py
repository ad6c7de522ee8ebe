"""What every policy of the family keeps, whatever its decoding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_samples import INSTRUCTIONS, KINDS, make_tiny, pad_prompts, random_tokens, sample_inputs
from torch.nn import functional as F

from treadle.data.noise import noise_key
from treadle.errors import ConfigError
from treadle.policies.prismatic.action_tokens import soft_labels
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.openvla import OpenVLA
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.sampling import Sampling

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.6]),
    top_k=st.sampled_from([0, 1, 7]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
)


@settings(max_examples=40, deadline=None)
@given(
    SAMPLINGS,
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
    st.sampled_from([None, False, True]),
    st.integers(0, 9),
    st.integers(0, 1000),
)
def test_evaluation_agrees_with_acting(
    policy: PrismaticPolicy, sampling: Sampling, order: list[int], left: bool | None, extra: int, seed: int
) -> None:
    """Whatever the sampling, the batch, its order, and how prompts are padded."""
    inputs = sample_inputs(policy, 5, seed)
    keys = noise_key(seed, np.arange(5))
    decision = policy.act(inputs, sampling, keys)
    rows = torch.tensor(order)
    others = inputs.take(rows)
    if left is not None:
        others = pad_prompts(policy, others, int(inputs.attention_mask.sum(1).max()) + extra, left)
    evaluation = policy.evaluate(others, decision.choice[rows], sampling)
    torch.testing.assert_close(evaluation.log_probs.detach(), decision.log_probs[rows], atol=1e-5, rtol=0)
    assert evaluation.values is not None
    assert decision.values is not None
    torch.testing.assert_close(evaluation.values.detach(), decision.values[rows], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(policy.values(others).detach(), decision.values[rows], atol=1e-5, rtol=1e-5)
    assert evaluation.entropy.isfinite().all()
    again = policy.act(others, sampling, keys[order])
    assert torch.equal(again.choice, decision.choice[rows])


def test_shapes_and_ranges(policy: PrismaticPolicy) -> None:
    inputs = sample_inputs(policy, 4)
    decision = policy.act(inputs, Sampling())
    assert decision.actions.shape == (4, 2, 3)
    assert decision.actions.dtype == torch.float32
    assert decision.choice.shape == (4, 6)
    assert decision.log_probs.shape == (4, *policy.entries) == (4, 2, 3)
    assert decision.choice.min() >= 512
    assert decision.choice.max() < 768
    assert decision.values is not None
    assert decision.values.shape == (4, 1)
    torch.testing.assert_close(policy.values(inputs).detach(), decision.values)
    # The codec gives back the tokens, but for the lowest id, which means the same as the next.
    torch.testing.assert_close(policy.targets(decision.actions).clamp(min=513), decision.choice.clamp(min=513))


def test_padding_changes_nothing(policy: PrismaticPolicy) -> None:
    inputs = sample_inputs(policy, 3)
    lengths = inputs.attention_mask.sum(1)
    assert len(lengths.unique()) == 3
    tokens = random_tokens(policy, 3)
    together, hidden = policy._logits(inputs, tokens)
    for row, length in enumerate(lengths.tolist()):
        part = inputs.take(torch.tensor([row]))
        alone = PrismaticInputs(
            part.input_ids[:, :length], part.attention_mask[:, :length], part.frames, None, part.proprioception
        )
        logits, state = policy._logits(alone, tokens[[row]])
        torch.testing.assert_close(state[0], hidden[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[0], together[row], atol=5e-5, rtol=1e-5)


def test_features_stand_for_frames(policy: PrismaticPolicy) -> None:
    inputs = sample_inputs(policy, 3)
    encoded = policy.encode(inputs)
    assert encoded.frames is None
    assert encoded.features is not None
    assert encoded.features.shape == (3, 16, 32)
    assert not encoded.features.requires_grad
    keys = noise_key(np.arange(3))
    torch.testing.assert_close(
        policy.act(inputs, Sampling(), keys).log_probs, policy.act(encoded, Sampling(), keys).log_probs
    )


def test_every_input_matters(policy: PrismaticPolicy) -> None:
    inputs = sample_inputs(policy, 3)
    tokens = random_tokens(policy, 3)
    logits, _ = policy._logits(inputs, tokens)
    others = sample_inputs(policy, 3, seed=1)
    turned = inputs.take(torch.tensor([1, 2, 0]))
    changed = [
        PrismaticInputs(inputs.input_ids, inputs.attention_mask, others.frames, None, inputs.proprioception),
        PrismaticInputs(inputs.input_ids, inputs.attention_mask, inputs.frames, None, others.proprioception),
        PrismaticInputs(turned.input_ids, turned.attention_mask, inputs.frames, None, inputs.proprioception),
    ]
    for other in changed:
        assert (policy._logits(other, tokens)[0] - logits).abs().max() > 1e-3


def test_two_cameras_are_frames_or_a_list(policy: PrismaticPolicy) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), dtype=np.uint8)
    proprioception = np.zeros((2, 4), dtype=np.float32)
    one = policy.prepare(frames, INSTRUCTIONS[:2], proprioception)
    two = policy.prepare([frames[:, 0], frames[:, 1]], INSTRUCTIONS[:2], proprioception)
    assert one.frames is not None
    assert two.frames is not None
    assert torch.equal(one.frames, two.frames)
    assert policy.features(one).shape == (2, 32, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_supervised_training_learns(tokenizer: Path, kind: str) -> None:
    policy = make_tiny(tokenizer, kind)
    inputs = sample_inputs(policy, 4)
    tokens = policy.targets(torch.linspace(-0.9, 0.9, 24).reshape(4, 2, 3))
    optimizer = torch.optim.AdamW(policy.freeze(vision=False)["policy"], lr=3e-3)
    for _ in range(150):
        loss = policy.supervised_loss(inputs, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (policy.act(inputs, Sampling(temperature=0)).choice == tokens).float().mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_earlier_tokens_are_read_as_spread_as_labels_are(
    tokenizer: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A normal distribution of three bins lies up to 0.57 below the label's next bin, and up to 0.69 below the one
    after it; its median is the label.
    """
    policy = make_tiny(tokenizer, kind)
    inputs, rows = sample_inputs(policy, 4), torch.arange(100, 124).reshape(4, 6)
    tokens = rows + policy.codec.first_id

    def reading(read: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(policy._logits(inputs, read)[0].flatten(0, 1), soft_labels(rows.flatten(), 256, 3.0))

    for number, bins in ((0.5, 0), (0.63, 1), (0.37, -1)):
        monkeypatch.setattr(torch, "rand", lambda shape, number=number, **_: torch.full(shape, number))
        loss = policy.supervised_loss(inputs, tokens, label_width=3.0)
        torch.testing.assert_close(loss, reading(tokens + bins))
        assert (loss != reading(tokens)) == (kind == "openvla" and bins != 0)
    assert torch.equal(policy.supervised_loss(inputs, tokens, label_width=0.0), policy.supervised_loss(inputs, tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_freeze_groups(tokenizer: Path, kind: str) -> None:
    policy = make_tiny(tokenizer, kind)
    groups = policy.freeze(vision=True)
    assert {id(p) for p in groups["value"]} == {id(p) for p in policy.value_head.parameters()}
    assert not any(p.requires_grad for p in [*policy.vision_backbone.parameters(), *policy.projector.parameters()])
    assert all(p.requires_grad for p in [*policy.language_model.parameters(), *policy.proprio_projector.parameters()])
    inputs = sample_inputs(policy, 2)
    evaluation = policy.evaluate(inputs, policy.act(inputs, Sampling()).choice, Sampling())
    (evaluation.log_probs.sum() + evaluation.values.sum()).backward()
    assert all(p.grad is not None for group in groups.values() for p in group)


@pytest.mark.parametrize("kind", KINDS)
def test_new_value_head_starts_at_zero(tokenizer: Path, kind: str) -> None:
    policy = make_tiny(tokenizer, kind, value_outputs=0)
    inputs = sample_inputs(policy, 2)
    assert policy.act(inputs, Sampling()).values is None
    with pytest.raises(ConfigError, match="no value head"):
        policy.values(inputs)
    policy.add_value_head(policy.chunk, (16,))
    assert torch.equal(policy.values(inputs), torch.zeros(2, 2))


def test_inputs_that_do_not_fit(policy: PrismaticPolicy) -> None:
    frames = np.zeros((1, 1, 32, 32, 3), dtype=np.uint8)
    proprioception = np.zeros((1, 4), dtype=np.float32)
    long = "put " + "z" * 60
    with pytest.raises(ConfigError, match=rf"prompt_length 40 is too short: '{long}' has \d+ tokens"):
        policy.prepare(frames, [long], proprioception)
    with pytest.raises(ConfigError, match=r"proprioception \[B, 4\]; none was given"):
        policy.prepare(frames, ["lift"], None)
    with pytest.raises(ConfigError, match=r"proprioception \[1, 3\] of 1 samples; the policy takes \[1, 4\]"):
        policy.prepare(frames, ["lift"], proprioception[:, :3])
    with pytest.raises(ConfigError, match="frames of 1 samples, instructions of 2"):
        policy.prepare(frames, ["lift", "put"], np.zeros((2, 4), dtype=np.float32))


def test_positions_beyond_the_prompt_need_tokens(tiny_openvla: OpenVLA) -> None:
    with pytest.raises(ConfigError, match="6 positions of an autoregressive policy need the tokens"):
        tiny_openvla.hidden_states(sample_inputs(tiny_openvla, 1), reads=6)


def test_the_token_behind_the_actions_can_be_left_out(tokenizer: Path) -> None:
    """Without it nothing depends on its embedding, and a sequence ends with the last action, as RLinf's does."""
    with_stop = make_tiny(tokenizer)
    without = make_tiny(tokenizer, stop_token=False)
    without.load_state_dict(with_stop.state_dict())
    inputs = sample_inputs(with_stop, 2)
    hidden = [policy.hidden_states(inputs) for policy in (with_stop, without)]
    assert hidden[0].shape == hidden[1].shape
    assert not torch.allclose(hidden[0], hidden[1])
    for policy in (with_stop, without):
        with torch.no_grad():
            policy.language_model.model.embed_tokens.weight[policy.language_model.config.eos_token_id] += 3.0
    assert not torch.allclose(with_stop.hidden_states(inputs), hidden[0])
    assert torch.equal(without.hidden_states(inputs), hidden[1])
