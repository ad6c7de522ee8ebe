from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_samples import INSTRUCTIONS, make_tiny, sample_inputs

from treadle.errors import ConfigError
from treadle.policies.llama import bidirectional
from treadle.policies.openvla_oft import OpenVLAOFT
from treadle.policies.protocol import Inputs, Sampling

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.6]),
    top_k=st.sampled_from([0, 1, 7]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
)


@settings(max_examples=40, deadline=None)
@given(SAMPLINGS, st.permutations(range(5)), st.integers(0, 1000))
def test_evaluation_agrees_with_acting(tiny: OpenVLAOFT, sampling: Sampling, order: list[int], seed: int) -> None:
    inputs = sample_inputs(tiny, 5, seed)
    decision = tiny.act(inputs, sampling, torch.rand(5, 6, generator=torch.Generator().manual_seed(seed)))
    rows = torch.tensor(order)
    evaluation = tiny.evaluate(inputs.take(rows), decision.tokens[rows], sampling)
    torch.testing.assert_close(evaluation.log_probs.detach(), decision.log_probs[rows], atol=1e-5, rtol=0)
    assert evaluation.values is not None
    assert decision.values is not None
    torch.testing.assert_close(evaluation.values.detach(), decision.values[rows], atol=1e-5, rtol=1e-5)
    assert evaluation.entropy.isfinite().all()


def test_shapes_and_ranges(tiny: OpenVLAOFT) -> None:
    inputs = sample_inputs(tiny, 4)
    decision = tiny.act(inputs, Sampling())
    assert decision.actions.shape == (4, 2, 3)
    assert decision.actions.dtype == torch.float32
    assert decision.tokens.shape == decision.log_probs.shape == (4, 6)
    assert decision.tokens.min() >= 512
    assert decision.tokens.max() < 768
    assert decision.values is not None
    assert decision.values.shape == (4, 1)
    torch.testing.assert_close(tiny.values(inputs).detach(), decision.values)
    # The codec gives back the tokens, but for the lowest id, which means the same as the next.
    torch.testing.assert_close(tiny.tokenize_actions(decision.actions).clamp(min=513), decision.tokens.clamp(min=513))


def test_padding_changes_nothing(tiny: OpenVLAOFT) -> None:
    inputs = sample_inputs(tiny, 3)
    lengths = inputs.attention_mask.sum(1)
    assert len(lengths.unique()) == 3
    together, hidden = tiny._logits(inputs)
    for row, length in enumerate(lengths.tolist()):
        part = inputs.take(torch.tensor([row]))
        alone = Inputs(
            part.input_ids[:, :length], part.attention_mask[:, :length], part.frames, None, part.proprioception
        )
        logits, state = tiny._logits(alone)
        torch.testing.assert_close(state[0], hidden[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[0], together[row], atol=5e-5, rtol=1e-5)


def test_lean_pass_is_the_stock_llama(tiny: OpenVLAOFT, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.language_model
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 11, 32, generator=generator)
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[0, 4:6] = mask[2, 5:6] = False
    positions = torch.stack([torch.arange(11), torch.arange(11), torch.arange(11).flip(0)])
    square = mask[:, None, None, :].expand(3, 1, 11, 11)
    with torch.no_grad():
        stock = model.model(inputs_embeds=embeddings, attention_mask=square, position_ids=positions, use_cache=False)
        for size in (0, 2**18):
            monkeypatch.setattr("treadle.policies.llama.FUSED_SIZE", size)
            lean = bidirectional(model, embeddings, positions, mask, slice(6, 10))
            torch.testing.assert_close(lean, stock.last_hidden_state[:, 6:10], atol=2e-6, rtol=1e-5)


def test_features_stand_for_frames(tiny: OpenVLAOFT) -> None:
    inputs = sample_inputs(tiny, 3)
    encoded = tiny.encode(inputs)
    assert encoded.frames is None
    assert encoded.features is not None
    assert encoded.features.shape == (3, 16, 32)
    assert not encoded.features.requires_grad
    noise = torch.full((3, 6), 0.4)
    torch.testing.assert_close(
        tiny.act(inputs, Sampling(), noise).log_probs, tiny.act(encoded, Sampling(), noise).log_probs
    )


def test_every_input_matters(tiny: OpenVLAOFT) -> None:
    inputs = sample_inputs(tiny, 3)
    logits, _ = tiny._logits(inputs)
    others = sample_inputs(tiny, 3, seed=1)
    turned = inputs.take(torch.tensor([1, 2, 0]))
    changed = [
        Inputs(inputs.input_ids, inputs.attention_mask, others.frames, None, inputs.proprioception),
        Inputs(inputs.input_ids, inputs.attention_mask, inputs.frames, None, others.proprioception),
        Inputs(turned.input_ids, turned.attention_mask, inputs.frames, None, inputs.proprioception),
    ]
    for other in changed:
        assert (tiny._logits(other)[0] - logits).abs().max() > 1e-3


def test_two_cameras_are_frames_or_a_list(tiny: OpenVLAOFT) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), dtype=np.uint8)
    proprioception = np.zeros((2, 4), dtype=np.float32)
    one = tiny.prepare(frames, INSTRUCTIONS[:2], proprioception)
    two = tiny.prepare([frames[:, 0], frames[:, 1]], INSTRUCTIONS[:2], proprioception)
    assert one.frames is not None
    assert two.frames is not None
    assert torch.equal(one.frames, two.frames)
    assert tiny.features(one).shape == (2, 32, 32)


def test_supervised_training_learns(tokenizer: Path) -> None:
    policy = make_tiny(tokenizer)
    inputs = sample_inputs(policy, 4)
    tokens = policy.tokenize_actions(torch.linspace(-0.9, 0.9, 24).reshape(4, 2, 3))
    optimizer = torch.optim.AdamW(policy.freeze(vision=False)["policy"], lr=3e-3)
    for _ in range(150):
        loss = policy.supervised_loss(inputs, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (policy.act(inputs, Sampling(temperature=0)).tokens == tokens).float().mean() > 0.9


def test_freeze_groups(tokenizer: Path) -> None:
    policy = make_tiny(tokenizer)
    groups = policy.freeze(vision=True)
    assert {id(p) for p in groups["value"]} == {id(p) for p in policy.value_head.parameters()}
    assert not any(p.requires_grad for p in [*policy.vision_backbone.parameters(), *policy.projector.parameters()])
    assert all(p.requires_grad for p in [*policy.language_model.parameters(), *policy.proprio_projector.parameters()])
    inputs = sample_inputs(policy, 2)
    evaluation = policy.evaluate(inputs, policy.act(inputs, Sampling()).tokens, Sampling())
    (evaluation.log_probs.sum() + evaluation.values.sum()).backward()
    assert all(p.grad is not None for group in groups.values() for p in group)


def test_new_value_head_starts_at_zero(tokenizer: Path) -> None:
    policy = make_tiny(tokenizer, value_outputs=0)
    inputs = sample_inputs(policy, 2)
    assert policy.act(inputs, Sampling()).values is None
    with pytest.raises(ConfigError, match="no value head"):
        policy.values(inputs)
    policy.add_value_head(policy.chunk, (16,))
    assert torch.equal(policy.values(inputs), torch.zeros(2, 2))


def test_inputs_that_do_not_fit(tiny: OpenVLAOFT) -> None:
    frames = np.zeros((1, 1, 32, 32, 3), dtype=np.uint8)
    proprioception = np.zeros((1, 4), dtype=np.float32)
    long = "put " + "z" * 60
    with pytest.raises(ConfigError, match=rf"prompt_length 40 is too short: '{long}' has \d+ tokens"):
        tiny.prepare(frames, [long], proprioception)
    with pytest.raises(ConfigError, match=r"proprioception \[B, 4\]; none was given"):
        tiny.prepare(frames, ["lift"], None)
    with pytest.raises(ConfigError, match="proprioception has 3 numbers, the policy takes 4"):
        tiny.prepare(frames, ["lift"], proprioception[:, :3])
    with pytest.raises(ConfigError, match="frames of 1 samples, instructions of 2"):
        tiny.prepare(frames, ["lift", "put"], np.zeros((2, 4), dtype=np.float32))
