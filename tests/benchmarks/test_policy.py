"""The benchmark of policies: its plain path computes what the policy computes, and its floor counts what is there."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.family import FAMILY
from benchmarks.floor import Floor
from benchmarks.policy import make_inputs, make_policy, run
from benchmarks.reference import REFERENCES
from treadle.errors import ConfigError
from treadle.policies import load_policy
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.sampling import Sampling

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
COLUMNS = {
    "policy",
    "size",
    "batch",
    "decisions_per_second",
    "reference_decisions_per_second",
    "ratio",
    "floor_share",
    "peak_memory_mb",
    "samples_trained_per_second",
    "reference_samples_trained_per_second",
    "training_ratio",
    "training_floor_share",
    "training_peak_memory_mb",
}


@pytest.fixture(scope="module", params=list(FAMILY))
def policy(request: pytest.FixtureRequest) -> PrismaticPolicy:
    made = make_policy(request.param, "tiny", torch.device("cpu"), torch.float32)
    with torch.no_grad():
        made.language_model.lm_head.weight.mul_(8)
        made.value_head.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    return made


def test_plain_path_is_the_policy(policy: PrismaticPolicy) -> None:
    inputs = make_inputs(policy, 3)
    reference = REFERENCES[type(policy)](policy)
    decision = policy.act(inputs, Sampling())
    with torch.no_grad():
        hidden = policy.hidden_states(inputs, decision.choice)
        everything = torch.log_softmax(policy.language_model.lm_head(hidden), dim=-1)
        expected = everything.gather(-1, decision.choice[..., None])[..., 0]
        log_probs, values = reference.evaluate(inputs, decision.choice)
    torch.testing.assert_close(log_probs, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(values, decision.values, atol=1e-5, rtol=1e-5)
    tokens, log_probs, values = reference.act(inputs)
    assert tokens.shape == log_probs.shape == decision.choice.shape
    again, _ = reference.evaluate(inputs, tokens)
    torch.testing.assert_close(log_probs, again.detach())
    assert values is not None


def attention_operations(query: list[int], key: list[int], *_: object, **__: object) -> int:
    return 4 * query[0] * query[1] * query[2] * query[3] * key[2]


def test_floor_has_the_products_of_a_decision() -> None:
    """Against torch's own counter. A causal pass needs half of the scores that the counter has for the prefix."""
    for name, statistics, overrides, least in (
        ("openvla_oft_tiny", "libero_spatial", {"proprioception_dim": 0, "head": "tokens"}, 1.0),
        ("openvla_tiny", "bridge_orig", {}, 0.85),
    ):
        policy = load_policy(FIXTURES / name, device="cpu", statistics=statistics, **overrides)
        inputs = make_inputs(policy, 2)
        floor = Floor(policy, inputs)
        floor.forward()
        floor.forward_and_backward()
        counter = FlopCounterMode(display=False, custom_mapping={FLASH: attention_operations})
        with counter:
            policy.act(inputs, Sampling())
        assert least * counter.get_total_flops() <= floor.operations <= counter.get_total_flops()


def test_rows_and_their_file(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    rows = run(path, sizes=["tiny"], batches=[2], training_batches=[1], device="cpu", threads=1, seconds=0.0)
    written = json.loads(path.read_text())
    assert set(written["rows"][0]) >= COLUMNS
    assert [(row["policy"], row["batch"]) for row in written["rows"]] == [(k, b) for k in FAMILY for b in (1, 2)]
    assert written["dtype"] == "float32"
    assert written["left_out"] == []
    for row in rows:
        assert row.ratio == pytest.approx(row.decisions_per_second / row.reference_decisions_per_second)
        assert row.floor_share > 0
        assert row.peak_memory_mb > 50
        assert (row.samples_trained_per_second is not None) == (row.batch == 1)


def test_what_is_asked_must_exist() -> None:
    with pytest.raises(ConfigError, match="kind of policy: 'pi0'"):
        run(None, policies=["pi0"], device="cpu")
    with pytest.raises(ConfigError, match="size: '13b'; allowed: tiny, 200m, 7b"):
        run(None, sizes=["13b"], device="cpu")
    with pytest.raises(ConfigError, match="dtype: 'int8'"):
        run(None, dtype="int8", device="cpu")


def test_rows_that_would_start_late_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    assert run(path, sizes=["tiny"], batches=[1], device="cpu", limit=-1) == []
    assert len(json.loads(path.read_text())["left_out"]) == len(FAMILY)
