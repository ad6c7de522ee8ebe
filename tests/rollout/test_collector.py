from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from fake_lanes import Plan, make_collector, make_lanes
from fakes import FakePolicy, Script, indices
from treadle.config.algorithm import DataNeeds
from treadle.rollout.collector import Collector
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.host import KeepFinal
from treadle.workers.crew import Crew, CrewPlan

HORIZON = 3


Make = Callable[..., Collector]


@pytest.fixture
def make() -> Iterator[Make]:
    """Collectors of the fake policy on the fake simulator; the horizon is 3, chunks are of 2."""
    with ExitStack() as opened:

        def build(
            policy: FakePolicy | None = None,
            *,
            slots: int = 2,
            scripts: dict[int, Script] | None = None,
            keep_final: KeepFinal = "truncated",
            valued: bool = True,
            encode: bool = False,
            group_size: int = 1,
            partial_reset: bool = True,
            next_inputs: bool = False,
            **plan: Any,
        ) -> Collector:
            policy = policy or FakePolicy()
            factory = SimulatorFactory("fake_simulator:FakeSimulator", {"scripts": scripts, "horizon": HORIZON})
            crew = opened.enter_context(Crew(CrewPlan(factory, slots, **plan)))
            needs = DataNeeds(partial_reset, group_size, keep_final=keep_final)
            lanes, stream = make_lanes(crew, Plan(crew.plan, needs, HORIZON))
            return make_collector(lanes, stream, policy, valued=valued, encode=encode, next_inputs=next_inputs)

        yield build


def fixed_length(make: Make, slots: int, scripts: dict[int, Script], group_size: int = 1) -> Collector:
    """Every scenario goes on to the horizon of 3 unless its script ends it; chunks of 2."""
    return make(slots=slots, scripts=scripts, keep_final="none", group_size=group_size, partial_reset=False)


def test_shapes_and_versions(make: Make):
    rollout = make(FakePolicy(chunk=2, action_dim=2)).collect(3, version=7)
    assert rollout.inputs.frames.shape[:2] == (3, 2)
    assert rollout.choices.shape == (3, 2, 4)
    assert rollout.log_probs.shape == (3, 2, 2, 2)
    assert rollout.values.shape == (3, 2, 1)
    assert rollout.state.shape == (3, 2, 2, 2)
    for name in ("reward", "terminated", "truncated", "success", "valid"):
        assert getattr(rollout, name).shape == (3, 2, 2)
    assert rollout.final_values.shape == rollout.scenarios.shape == (3, 2)
    assert rollout.next_values.shape == (2,)
    assert rollout.versions.tolist() == [[7, 7]] * 3
    assert rollout.seconds.keys() == {"simulate", "generate", "collect"}


def test_values_and_states_before_at_the_end_of_and_after_episodes(make: Make):
    """Chunks of 2 and horizon 3: every second decision is cut after one action, and the third begins an episode."""
    policy = FakePolicy()
    rollout = make(policy).collect(3, version=0)
    index = torch.from_numpy(indices(rollout.scenarios)).float()
    assert (rollout.scenarios[0] == rollout.scenarios[1]).all()
    assert (rollout.scenarios[1] != rollout.scenarios[2]).all()
    assert rollout.valid.tolist() == [[[True, True]] * 2, [[True, False]] * 2, [[True, True]] * 2]
    assert rollout.truncated.tolist() == [[[False, False]] * 2, [[True, False]] * 2, [[False, False]] * 2]
    assert torch.equal(rollout.values[..., 0], 100 * index + torch.tensor([[0.0], [2.0], [0.0]]))
    zero = torch.zeros(2)
    assert torch.equal(rollout.final_values, torch.stack([zero, 100 * index[1] + 3, zero]))
    assert torch.equal(rollout.next_values, 100 * index[2] + 2)
    assert torch.equal(rollout.final_states[1], torch.stack([index[1], torch.full((2,), 3.0)], -1))
    assert not rollout.final_states[[0, 2]].any()
    assert torch.equal(rollout.next_states, torch.stack([index[2], torch.full((2,), 2.0)], -1))
    assert [episode.length for episode in rollout.episodes] == [3, 3]


@pytest.mark.parametrize(("keep", "steps"), [("truncated", None), ("ended", 1)])
def test_a_termination_is_bootstrapped_only_if_asked(make: Make, keep, steps):
    policy = FakePolicy()
    collector = make(policy, scripts={i: Script(ends=1) for i in range(20)}, keep_final=keep)
    rollout = collector.collect(2, version=0)
    assert rollout.terminated.tolist() == [[[True, False]] * 2] * 2
    index = torch.from_numpy(indices(rollout.scenarios)).float()
    wanted = torch.zeros(2, 2) if steps is None else 100 * index + steps
    assert torch.equal(rollout.final_values, wanted)


def test_a_round_of_fixed_length_plays_one_episode_per_slot(make: Make):
    scripts = {i: Script(ends=1, succeeds=(1,)) for i in range(0, 20, 2)}
    collector = fixed_length(make, 4, scripts)
    seen = []
    for _ in range(2):
        rollout = collector.collect(2, version=0)
        assert len(rollout.episodes) == 4
        for slot, index in enumerate(indices(rollout.scenarios[0]).tolist()):
            short = index in scripts
            seen.append(index)
            assert rollout.valid[:, slot].flatten().tolist() == [True, not short, not short, False]
            assert rollout.terminated[0, slot, 0] == short
            assert rollout.success[:, slot].flatten().tolist() == [short, False, False, False]
            assert indices(rollout.scenarios)[1, slot] == (-1 if short else index)
        assert not rollout.final_values.any(), "no last observation is kept"
    assert len(set(seen)) == 8


def test_a_round_ends_with_its_last_episode(make: Make):
    rollout = fixed_length(make, 3, {i: Script(ends=2) for i in range(20)}).collect(2, version=4)
    assert rollout.choices.shape[0] == rollout.final_values.shape[0] == len(rollout.inputs) == 1
    assert rollout.versions.tolist() == [[4] * 3]


def test_slots_whose_episode_is_over_take_no_forward_pass(make: Make):
    """Of 4 slots with 3 steps to play in chunks of 2, those whose script ends them at once are done after a chunk."""
    scripts = {i: Script(ends=1) for i in range(0, 20, 2)}
    policy = FakePolicy()
    whole = make(policy, slots=4, scripts=scripts, keep_final="none", partial_reset=False).collect(2, version=0)
    playing = indices(whole.scenarios) >= 0
    assert 0 < playing[1].sum() < 4, "some slots idle"
    assert [len(frames) for frames in policy.frames] == playing.sum(1).tolist(), "nothing is decided or valued for them"
    assert policy.valued == []
    assert (whole.choices.flatten(2).any(-1).numpy() == playing).all()
    # The others are as if nobody idled.
    alone = make(slots=4, keep_final="none", partial_reset=False).collect(2, version=0)
    for name in ("choices", "log_probs", "values"):
        assert torch.equal(getattr(whole, name)[playing], getattr(alone, name)[playing]), name
    assert torch.equal(whole.inputs.frames[1][playing[1]], alone.inputs.frames[1][playing[1]])


def test_the_slots_of_a_group_meet_one_scenario(make: Make):
    rollout = fixed_length(make, 5, {}, group_size=2).collect(2, version=0)
    one, two, three = indices(rollout.scenarios)[0, ::2].tolist()
    assert indices(rollout.scenarios).tolist() == [[one, one, two, two, three]] * 2
    assert len({one, two, three}) == 3
    assert len({tuple(tokens) for tokens in rollout.choices[0].tolist()}) == 5


def test_a_restored_collector_begins_the_next_round(make: Make):
    one, other = fixed_length(make, 3, {}), fixed_length(make, 3, {})
    one.collect(2, version=0)
    other.load_state_dict(one.state_dict())
    left, right = one.collect(2, version=0), other.collect(2, version=0)
    for name in ("choices", "reward", "valid", "state"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    assert left.episodes == right.episodes


def test_values_are_computed_for_rows_that_ended_only(make: Make):
    policy = FakePolicy()
    scripts = {index: Script(ends=1) for index in range(20)}
    first = make(slots=2).collect(1, version=0).scenarios[0, 0].index
    del scripts[int(first)]
    collector = make(policy, slots=2, scripts=scripts)
    collector.collect(2, version=0)
    assert policy.valued == [1, 2], "one row of the truncated episode, then the observation after the rollout"


def test_a_value_per_action(make: Make):
    rollout = make(FakePolicy(value_outputs=2)).collect(2, version=0)
    index = torch.from_numpy(indices(rollout.scenarios)).float()
    assert torch.equal(rollout.values[0], 100 * index[0, :, None] + torch.tensor([[0.0, 1.0]]))
    assert torch.equal(rollout.final_values[1], 100 * index[1] + 3)


def test_episodes_go_on_from_one_rollout_to_the_next(make: Make):
    collector, whole = make(FakePolicy()), make(FakePolicy()).collect(4, version=0)
    parts = [collector.collect(count, version=0) for count in (1, 3)]
    for name in ("choices", "reward", "valid", "values", "state", "final_values", "final_states"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    assert torch.equal(parts[1].next_values, whole.next_values)
    assert torch.equal(parts[1].next_states, whole.next_states)
    assert torch.equal(parts[0].next_states, whole.state[1, :, 0])
    assert torch.equal(parts[0].next_values, whole.values[1, :, 0])


def test_a_restored_collector_goes_on_where_the_other_was(make: Make):
    one, other = make(FakePolicy()), make(FakePolicy())
    one.collect(1, version=0)
    state = one.state_dict()
    other.load_state_dict(state)
    left, right = one.collect(4, version=0), other.collect(4, version=0)
    for name in ("choices", "reward", "valid", "values", "state", "final_values", "next_values", "next_states"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    assert left.episodes == right.episodes


def test_inputs_are_kept_as_they_were_seen(make: Make):
    rollout = make(FakePolicy()).collect(3, version=0)
    assert rollout.next_inputs is None
    assert rollout.inputs.frames[:, :, 0, 0, 0, 0].tolist() == indices(rollout.scenarios).tolist()
    encoded = make(FakePolicy(), encode=True).collect(1, version=0)
    assert encoded.inputs.frames is None
    assert encoded.inputs.features is not None


@pytest.mark.parametrize("valued", [True, False])
@pytest.mark.parametrize(("slots", "lanes"), [(2, 1), (3, 2)])
def test_the_observation_after_each_decision(make: Make, valued, slots, lanes):
    """Chunks of 2, horizon 3, and scenarios that end at step 1: what follows is of the same episode, its last
    observation where it ended.
    """
    scripts = {index: Script(ends=1) for index in range(0, 20, 2)}
    collector = make(slots=slots, lanes=lanes, scripts=scripts, valued=valued, keep_final="ended", next_inputs=True)
    for _ in range(2):
        rollout = collector.collect(4, version=0)
        index = indices(rollout.scenarios)
        before = rollout.inputs.proprioception
        after = rollout.next_inputs.proprioception
        assert after[..., 0].tolist() == index.tolist(), "of the same episode"
        played = rollout.valid.sum(-1)
        assert torch.equal(after[..., 1], before[..., 1] + played)
        assert torch.equal(rollout.next_inputs.frames[..., 0, 0, 0, 0], torch.from_numpy(index).to(torch.uint8))


def test_nothing_follows_what_was_not_decided(make: Make):
    scripts = {i: Script(ends=1) for i in range(0, 20, 2)}
    collector = make(slots=4, scripts=scripts, keep_final="ended", partial_reset=False, next_inputs=True)
    rollout = collector.collect(2, version=0)
    idle = torch.from_numpy(indices(rollout.scenarios)) < 0
    assert idle.sum() > 0
    assert not rollout.next_inputs.proprioception[idle].any()
    steps = rollout.inputs.proprioception[..., 1] + rollout.valid.sum(-1)
    assert torch.equal(rollout.next_inputs.proprioception[..., 1][~idle], steps[~idle])


def test_states_before_each_action(make: Make):
    """Horizon 3: the first action of a decision has the observed state, the second what the first led to."""
    policy = FakePolicy()
    rollout = make(policy, valued=False).collect(2, version=0)
    index = torch.from_numpy(indices(rollout.scenarios)).float()
    assert torch.equal(rollout.state[0, :, 0, 0], index[0])
    assert rollout.state[0, :, :, 1].tolist() == [[0, 1]] * 2
    assert rollout.state[1, :, :, 1].tolist() == [[2, 3]] * 2
    assert not policy.valued
    assert (rollout.values, rollout.final_values, rollout.next_values) == (None, None, None), "not zeros"
