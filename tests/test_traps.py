"""Traps seen in other implementations: for each, a check that holds, and that fails once the trap is built in."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fake_lanes import make_collector, opened, plan
from fakes import FakePolicy, FakeSimulator, Script, scenario
from miniature import INSTRUCTIONS, learning_config, make_policy, make_rollout
from played import valid_actions
from rank_samples import on_threads, shards
from treadle.config.schema import EvaluationConfig
from treadle.evaluation.evaluate import evaluate_policy
from treadle.policies.prismatic.action_tokens import log_distribution
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.protocol import Sampling
from treadle.rollout.sources import ScenarioStream
from treadle.simulators.host import Host
from treadle.training.on_policy.batch import estimate_advantages
from treadle.training.ranks import ALONE, Ranks
from treadle.training.schedule import draw_minibatches
from treadle.workers.crew import Crew
from update_samples import make_ppo


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAOFT:
    torch.manual_seed(0)
    policy = make_policy(tmp_path_factory.mktemp("tokenizer"), chunk=2, action_dim=3)
    policy.add_value_head(2)
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.last.weight, std=0.3)
    return policy


@pytest.mark.parametrize(
    "trainer",
    [Sampling(), Sampling(temperature=3.0, top_k=8), Sampling(temperature=3.0, top_p=0.6), Sampling(1.0, 8, 0.6)],
)
def test_1_rollout_and_trainer_have_one_distribution(base: OpenVLAOFT, trainer: Sampling):
    """Temperature, top-k or top-p in one of the two only is seen at once, and the alarm says so."""
    acting = Sampling(temperature=3.0, top_k=8, top_p=0.6)
    for sampling, sound in ((acting, True), (trainer, False)):
        policy = copy.deepcopy(base)
        settings = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        config = learning_config(policy={"sampling": settings}, algorithm={"log_prob_alarm": 0.05})
        ppo = make_ppo(policy, config)
        metrics = ppo.update([make_rollout(policy, sampling=acting)], iteration=3)
        assert (not ppo.alarms(metrics)) == sound


def sums_to_one(log_probs: Tensor) -> bool:
    return log_probs.dtype == torch.float32 and bool((log_probs.exp().sum(-1) - 1).abs().max() < 1e-5)


def test_2_log_probs_are_float32_over_the_action_rows():
    logits = torch.randn(4, 6, 256, generator=torch.Generator().manual_seed(0)).bfloat16() * 4
    assert sums_to_one(log_distribution(logits, Sampling()))
    assert not sums_to_one(logits.log_softmax(-1))
    assert not sums_to_one(logits.log_softmax(-1).float())
    every_row = torch.cat([logits.float(), torch.randn(4, 6, 1000)], -1)
    assert not sums_to_one(every_row.log_softmax(-1)[..., :256])


def test_3_a_value_does_not_read_padding(base: OpenVLAOFT):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 1, 32, 32, 3), dtype=np.uint8)
    inputs = base.prepare(frames, INSTRUCTIONS, np.zeros((2, 7), np.float32))
    assert not inputs.attention_mask.all(), "there is padding to read"
    dirty = copy.deepcopy(inputs)
    dirty.input_ids = torch.where(inputs.attention_mask, inputs.input_ids, 5)
    with torch.no_grad():
        assert torch.allclose(base.values(inputs), base.values(dirty), atol=1e-5)
        seen = copy.deepcopy(dirty)
        seen.attention_mask = torch.ones_like(inputs.attention_mask)
        assert not torch.allclose(base.values(inputs), base.values(seen), atol=1e-3), "the mask is what keeps it out"


def test_4_an_ending_stays_where_it_was_in_its_chunk():
    host = Host(FakeSimulator(1, {0: Script(ends=2)}), lambda _: scenario(0), horizon=10)
    host.start()
    step = host.step(np.zeros((1, 4, 2), np.float32))
    expected = [[False, True, False, False]]
    assert step.terminated.tolist() == expected
    assert step.reward.tolist() == [[1, 2, 0, 0]]
    assert step.valid.tolist() == [[True, True, False, False]]
    collapsed = np.zeros_like(step.terminated)
    collapsed[:, -1] = step.terminated.any(1)
    assert valid_actions(torch.tensor(collapsed)[None]).sum() != step.valid.sum()


def has_fresh_orders(draw: Callable[[int, int], Iterator[Tensor]]) -> bool:
    orders = {tuple(torch.cat(list(draw(iteration, epoch))).tolist()) for iteration in range(3) for epoch in range(3)}
    return len(orders) == 9


def test_5_every_epoch_of_every_iteration_has_an_order_of_its_own():
    assert has_fresh_orders(lambda iteration, epoch: draw_minibatches(30, 8, 0, iteration, epoch))
    assert not has_fresh_orders(lambda iteration, epoch: draw_minibatches(30, 8, 0, 0, epoch))
    assert not has_fresh_orders(lambda iteration, epoch: draw_minibatches(30, 8, 0, iteration, 0))


def test_6_advantages_are_normalised_over_all_ranks(base: OpenVLAOFT):
    """Of four slots, two ranks have one and three; the first has larger rewards, which it would lose on its own."""
    rollout, algorithm = make_rollout(base), learning_config().algorithm
    rollout.reward[:, 0] += 10
    slots = torch.arange(4).expand(3, 4).flatten()
    whole = estimate_advantages([rollout], algorithm).advantages
    parts = shards([rollout], (1, 3))

    def normalised(ranks: Ranks, over: Ranks) -> Tensor:
        return estimate_advantages(parts[ranks.rank], algorithm, ranks=over).advantages

    together = on_threads(2, lambda ranks: normalised(ranks, ranks))
    apart = on_threads(2, lambda ranks: normalised(ranks, ALONE))
    for (first, other), sound in ((together, True), (apart, False)):
        assert torch.allclose(first, whole[slots == 0], atol=1e-5) == sound
        assert torch.allclose(other, whole[slots > 0], atol=1e-5) == sound


def test_7_remainders_are_used():
    """Of decisions that do not divide into minibatches, and of slots that do not divide into groups."""
    parts = list(draw_minibatches(13, 5, 0, 0, 0))
    assert [len(part) for part in parts] == [5, 5, 3]
    assert sorted(torch.cat(parts).tolist()) == list(range(13))
    assert sorted(torch.cat(parts[: 13 // 5]).tolist()) != list(range(13)), "integer division drops some"
    stream = ScenarioStream(12, 7, 0, group_size=3)
    played = [stream.next(slot) for slot in range(7)]
    assert None not in played
    assert len({given.entry for given in played if given is not None}) == 3


def test_8_evaluation_enumerates_scenarios():
    policy: Any = FakePolicy(3)
    with Crew(plan(3, lanes=2, workers=2, scripts={}).crew) as crew:
        evaluate_policy(policy, crew, 10, EvaluationConfig(suites=("train",), episodes=20, slots=3))
    asked = [instruction for texts in policy.instructions for instruction in texts]
    # Each for the four decisions that ten steps take.
    assert Counter(asked) == {f"do {index}": 4 for index in range(20)}
    drawn = np.random.default_rng(0).integers(20, size=20)
    assert len(set(drawn.tolist())) < 20, "as many draws with replacement miss some"


def test_9_values_of_last_observations_take_no_generation_and_only_rows_that_ended():
    policy: Any = FakePolicy()
    acted: list[int] = []
    act = policy.act
    policy.act = lambda inputs, *rest: (acted.append(len(inputs)), act(inputs, *rest))[1]
    given = [ScenarioStream(20, 3, seed=3).next(slot) for slot in range(3)]
    first = [assignment.entry.number for assignment in given if assignment is not None]
    scripts = {first[0]: Script(ends=1), first[1]: Script(ends=1)}
    with opened(replace(plan(3, scripts=scripts), horizon=2)) as (lanes, stream):
        make_collector(lanes, stream, policy).collect(1, version=0)
    assert acted == [3], "one generation a decision, none for the last observation"
    assert policy.valued == [1, 3], "the truncated row, then what follows the rollout"


def test_10_frames_travel_as_bytes():
    with opened(plan(2)) as (lanes, stream):
        assert lanes.buffer.observation.frames.dtype == np.uint8
        rollout = make_collector(lanes, stream, FakePolicy()).collect(2, version=0)
    frames = rollout.inputs.tensors()["frames"]
    assert frames.dtype == torch.uint8
    assert frames[0].nbytes == 2 * 4 * 4 * 3
