import pytest
import torch
from policy_samples import random_tokens, sample_inputs

from treadle.policies.prismatic.llama import Decoder, bidirectional, causal
from treadle.policies.prismatic.openvla import OpenVLA
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT


def test_bidirectional_pass_is_the_stock_llama(tiny: OpenVLAOFT, monkeypatch: pytest.MonkeyPatch) -> None:
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
            monkeypatch.setattr("treadle.policies.prismatic.llama.FUSED_SIZE", size)
            lean = bidirectional(model, embeddings, positions, mask, slice(6, 10))
            torch.testing.assert_close(lean, stock.last_hidden_state[:, 6:10], atol=2e-6, rtol=1e-5)


def test_causal_pass_is_the_stock_llama(tiny_openvla: OpenVLA) -> None:
    model = tiny_openvla.language_model
    embeddings = torch.randn(3, 11, 32, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(3, 11, dtype=torch.bool)
    valid[0, 5:8] = valid[2, 7:8] = False
    positions = (valid.cumsum(1) - 1).clamp(min=0)
    square = (torch.ones(11, 11).tril().bool() & valid[:, None, :])[:, None]
    with torch.no_grad():
        stock = model.model(inputs_embeds=embeddings, attention_mask=square, position_ids=positions, use_cache=False)
        expected = stock.last_hidden_state[:, 8:]
        torch.testing.assert_close(causal(model, embeddings, positions, valid, 3), expected, atol=2e-6, rtol=1e-5)
        decoder = Decoder(model, embeddings[:, :9], positions, valid)
        torch.testing.assert_close(decoder.hidden, expected[:, :1], atol=2e-6, rtol=1e-5)
        for column in (9, 10):
            hidden = decoder.read(embeddings[:, column, None])
            torch.testing.assert_close(hidden, expected[:, column - 8, None], atol=2e-6, rtol=1e-5)
        alone = model.model(inputs_embeds=embeddings[1:2], use_cache=False).last_hidden_state[:, 7:]
        torch.testing.assert_close(causal(model, embeddings[1:2], positions[1:2], None, 4), alone, atol=2e-6, rtol=1e-5)


def test_later_tokens_change_nothing_before_them(tiny_openvla: OpenVLA) -> None:
    inputs, tokens = sample_inputs(tiny_openvla, 3), random_tokens(tiny_openvla, 3)
    other = tokens.clone()
    other[:, 3] = 600 + torch.arange(3)
    first, second = (tiny_openvla._logits(inputs, x)[0].detach() for x in (tokens, other))
    assert torch.equal(first[:, :4], second[:, :4])
    assert (first[:, 4:] - second[:, 4:]).abs().amax(dim=-1).min() > 1e-4


def test_nothing_but_the_action_rows_is_computed_of_the_head(
    tiny_openvla: OpenVLA, tiny: OpenVLAOFT, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.policies.sampling import Sampling

    def called(*_: object) -> None:
        raise AssertionError("the whole language head")

    for policy in (tiny_openvla, tiny):
        monkeypatch.setattr(policy.language_model.lm_head, "forward", called)
        inputs = sample_inputs(policy, 2)
        decision = policy.act(inputs, Sampling())
        policy.evaluate(inputs, decision.choice, Sampling())
        policy.supervised_loss(inputs, decision.choice)
        monkeypatch.undo()
