"""Endings, partial reset and statistics of the host, on a simulator that goes by a script."""

from collections import deque
from dataclasses import fields, replace

import numpy as np
import pytest

from fake_simulator import FakeSimulator, Script, WordingSimulator, one_after_another, scenario
from scripted_host import SCRIPTS, bits, make_host, zeros
from treadle.data.observation import Observation
from treadle.data.scenario import Scenario
from treadle.data.step import Step
from treadle.errors import ConfigError
from treadle.simulators.host import Host, KeepFinal
from treadle.simulators.protocol import Slots
from treadle.simulators.tabletop import Tabletop


def test_an_ending_inside_a_chunk_masks_the_rest_of_it():
    host, _ = make_host()
    host.start()
    step = host.step(zeros())
    assert bits(step.valid) == ["xxx.", "xxxx", "xxxx"]
    assert bits(step.terminated) == ["..x.", "....", "...."]
    assert bits(step.truncated) == ["....", "....", "...."]
    assert bits(step.success) == ["..x.", ".x..", "...."]
    assert step.reward.tolist() == [[1, 2, 3, 0], [1, 2, 3, 4], [1, 2, 3, 4]]


def test_a_slot_that_ended_shows_the_first_observation_of_its_next_scenario():
    host, _ = make_host(keep_final="ended")
    observation = host.start()
    step = host.step(zeros())
    assert host.observation is observation
    assert observation.state.tolist() == [[3, 0], [1, 4], [2, 4]]
    assert [what.instruction for what in host.scenarios if what] == ["do 3", "do 1", "do 2"]
    assert step.final_slots.tolist() == [0]
    assert step.final.state.tolist() == [[0, 3]]
    assert step.final.frames[0].max() == 0
    assert host.elapsed.tolist() == [0, 4, 4]


def test_the_horizon_truncates_inside_a_chunk_and_termination_there_is_no_truncation():
    host, simulator = make_host()
    host.start()
    host.step(zeros())
    second = host.step(zeros())
    assert bits(second.terminated) == ["...x", "....", "...."]
    third = host.step(zeros())
    assert simulator.limits == [[4, 4, 4], [4, 4, 4], [2, 2]]
    assert bits(third.valid) == ["....", "xx..", "xx.."]
    assert bits(third.truncated) == ["....", ".x..", "...."]
    assert bits(third.terminated) == ["....", "....", ".x.."]
    assert third.reward.tolist() == [[0, 0, 0, 0], [9, 10, 0, 0], [9, 10, 0, 0]]
    assert third.final_slots.tolist() == [1]
    assert third.final.state.tolist() == [[1, 10]]


@pytest.mark.parametrize(
    ("keep", "kept", "scenarios"),
    [
        ("none", [[], [], []], [[], [], []]),
        ("truncated", [[], [], [1]], [[], [], [1]]),
        ("ended", [[0], [0], [1, 2]], [[0], [3], [1, 2]]),
    ],
)
def test_final_holds_the_observations_that_are_asked_for(keep: KeepFinal, kept, scenarios):
    host, _ = make_host(keep_final=keep)
    host.start()
    steps = [host.step(zeros()) for _ in range(3)]
    assert [step.final_slots.tolist() for step in steps] == kept
    assert [len(step.final.frames) for step in steps] == [len(slots) for slots in kept]
    assert [step.final.proprioception[:, 0].astype(int).tolist() for step in steps] == scenarios


def test_statistics_of_episodes():
    host, _ = make_host()
    host.start()
    results = [result for _ in range(3) for result in host.step(zeros()).episodes]
    found = [(r.scenario.index, r.success_once, r.success_at_end, r.episode_return, r.length) for r in results]
    assert found == [
        (0, True, True, 6.0, 3),
        (3, True, True, 10.0, 4),
        (1, True, False, 55.0, 10),
        (2, False, False, 55.0, 10),
    ]


def test_slots_idle_once_the_source_is_exhausted():
    host, _ = make_host()
    host.start()
    for _ in range(2):
        host.step(zeros())
    assert host.playing.tolist() == [1, 2]
    assert [s.index if s else None for s in host.scenarios] == [None, 1, 2]
    assert host.observation.state[0].tolist() == [3, 0]
    step = host.step(np.where(np.arange(3)[:, None, None] == 0, np.float32(np.nan), zeros()))
    assert bits(step.valid)[0] == "...."
    assert np.isfinite(step.reward).all()
    assert not len(host.playing)


def test_an_idle_slot_is_asked_again_after_each_chunk():
    """A source that has nothing now may have something later; before the next chunk, the slot is put at its start."""
    given: list[Scenario | None] = [scenario(7), None, None]
    host = Host(FakeSimulator(2), lambda _: given.pop(0), 6)
    host.start()
    assert host.playing.tolist() == [0]
    assert bits(host.step(zeros(2)).valid) == ["xxxx", "...."]
    assert host.playing.tolist() == [0]
    given += [scenario(9), None, scenario(8)]
    step = host.step(zeros(2))
    assert bits(step.valid) == ["xx..", "...."]
    assert [what and what.index for what in host.scenarios] == [9, None]
    host.step(zeros(2))
    assert [what and what.index for what in host.scenarios] == [9, 8]
    assert host.observation.state.tolist() == [[9, 4], [8, 0]]
    assert not given


def test_a_scene_words_what_it_asks_for():
    host = Host(WordingSimulator(2), one_after_another(scenario(i) for i in range(3)), 4)
    host.start()
    # It is the scenario that was given, whatever it says.
    assert host.scenarios == [scenario(0), scenario(1)]
    assert [host.scenario(slot).instruction for slot in (0, 1)] == ["do 0 with the left arm", "do 1 with the right arm"]
    step = host.step(zeros(2))
    assert [episode.scenario.instruction[-9:] for episode in step.episodes] == [" left arm", "right arm"]
    assert host.scenario(0).instruction == "do 2 with the left arm"
    host.restore([None, (scenario(1), zeros(1)[0])])
    assert host.scenario(1).instruction == "do 1 with the right arm"


def test_fewer_scenarios_than_slots():
    host = Host(FakeSimulator(3), one_after_another([scenario(7)]), 4)
    host.start()
    assert host.playing.tolist() == [0]
    assert [result.scenario.index for result in host.step(zeros()).episodes] == [7]


def test_actions_reach_their_slots():
    host, _ = make_host()
    host.start()
    actions = zeros()
    actions[..., 0] = np.arange(12).reshape(3, 4) * 100
    assert host.step(actions).reward.tolist() == [[1, 102, 203, 0], [401, 502, 603, 704], [801, 902, 1003, 1104]]


def assert_same(one: Step, other: Step) -> None:
    for item in fields(Step):
        left, right = getattr(one, item.name), getattr(other, item.name)
        if item.name == "final":
            assert_same_observation(left, right)
        elif item.name == "episodes":
            assert left == right
        else:
            assert left.dtype == right.dtype
            assert np.array_equal(left, right), item.name


def assert_same_observation(one: Observation, other: Observation) -> None:
    for item in fields(Observation):
        assert np.array_equal(getattr(one, item.name), getattr(other, item.name)), item.name


def test_filming_changes_nothing_and_sees_every_action_that_is_played():
    filmed: list[list[int]] = []
    host, _ = make_host(on_action=lambda slots: filmed.append(slots.tolist()))
    plain, _ = make_host()
    host.start()
    plain.start()
    actions = np.random.default_rng(0).random((3, 3, 4, 2)).astype(np.float32)
    for chunk in actions:
        assert_same(host.step(chunk), plain.step(chunk))
    everyone = [0, 1, 2]
    assert filmed == [everyone] * 3 + [[1, 2]] + [everyone] * 4 + [[1, 2]] * 2


class PairingSimulator(FakeSimulator):
    """Two actions are one motion."""

    def __init__(self, slots, scripts):
        super().__init__(slots, scripts)
        self.spec = replace(self.spec, actions_together=2)


def test_actions_that_are_one_motion_are_filmed_together():
    filmed: list[list[int]] = []
    ends = {i: Script(ends=7) for i in range(4)}
    host = Host(
        PairingSimulator(1, ends), one_after_another(map(scenario, range(4))), 5,
        on_action=lambda slots: filmed.append(slots.tolist()),
    )  # fmt: skip
    host.start()
    host.step(zeros()[:1])
    assert host.simulator.limits == [[2], [2]]
    host.step(zeros()[:1])
    assert host.simulator.limits == [[2], [2], [1]], "the horizon cuts a motion short"
    assert filmed == [[0]] * 3


def test_a_chunk_that_would_part_a_motion_is_refused():
    host = Host(PairingSimulator(1, {}), one_after_another([scenario(0)]), 10)
    host.start()
    with pytest.raises(ConfigError, match="plays 2 actions as one motion, and the policy's chunk has 3"):
        host.step(zeros()[:1, :3])


def test_restored_episodes_keep_their_statistics():
    host, _ = make_host()
    host.start()
    host.step(zeros())
    restored = Host(FakeSimulator(3, SCRIPTS), one_after_another([]), 10)
    had = [(scenario(3), zeros()[0, :0]), (scenario(1), zeros()[0]), (scenario(2), zeros()[0])]
    assert restored.restore(had).state.tolist() == [[3, 0], [1, 4], [2, 4]]
    results = [result for _ in range(2) for result in restored.step(zeros()).episodes]
    assert [(r.scenario.index, r.success_once, r.episode_return, r.length) for r in results] == [
        (3, True, 10.0, 4),
        (1, True, 55.0, 10),
        (2, False, 55.0, 10),
    ]


@pytest.fixture
def drawn(monkeypatch) -> list[list[int]]:
    """The slots of each call in which a fake simulator draws."""
    calls: list[list[int]] = []
    observe = FakeSimulator.observe

    def noted(simulator: FakeSimulator, slots: Slots, out: Observation) -> None:
        calls.append(slots.tolist())
        observe(simulator, slots, out)

    monkeypatch.setattr(FakeSimulator, "observe", noted)
    return calls


def test_frames_are_drawn_where_the_policy_looks_and_nowhere_else(drawn):
    host, _ = make_host()
    host.start()
    host.step(zeros())
    assert drawn == [[0, 1, 2]] * 2, "once for four actions"
    host.restore([(scenario(1), zeros(1, 8)[0]), None, None])
    assert drawn[2:] == [[0]], "and not for what is played again"


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        # A new episode of slot 0 begins in the first chunk, and ends in the second; slot 1 is cut in the third, where
        # slot 2 terminates. Nothing follows.
        ("none", [[0, 1, 2], [0, 1, 2], [1, 2]]),
        ("truncated", [[0, 1, 2], [0, 1, 2], [1, 2], [1]]),
        ("ended", [[0, 1, 2], [0], [0, 1, 2], [0], [1, 2], [1, 2]]),
    ],
)
def test_each_moment_is_drawn_once_and_last_ones_where_they_are_kept(keep: KeepFinal, expected, drawn):
    host, _ = make_host(keep_final=keep)
    host.start()
    for _ in range(3):
        host.step(zeros())
    assert drawn == expected


def test_idle_slots_are_restored_idle():
    host, _ = make_host()
    host.start()
    host.restore([None] * 3)
    assert not len(host.playing)
    assert bits(host.step(zeros()).valid) == ["...."] * 3


def test_an_episode_that_does_not_repeat_itself_starts_over_and_sits_a_chunk_out():
    """Scenario 0 ends at step 3, so that it cannot have had four actions."""
    host = Host(FakeSimulator(3, SCRIPTS), one_after_another([]), 10)
    host.restore([(scenario(0), zeros()[0]), (scenario(1), zeros()[0]), None])
    assert host.elapsed.tolist() == [0, 4, 0]
    assert host.observation.state.tolist() == [[0, 0], [1, 4], [0, 0]]
    assert bits(host.step(zeros()).valid) == ["....", "xxxx", "...."]
    assert host.observation.state[0].tolist() == [0, 0]
    step = host.step(zeros())
    assert bits(step.valid) == ["xxx.", "xx..", "...."]
    assert [(r.scenario.index, r.episode_return) for r in step.episodes] == [(0, 6.0), (1, 55.0)]


@pytest.mark.integration
def test_the_tabletop_is_restored_to_the_very_same_state():
    slots, chunk = 3, 4
    simulators = [Tabletop(slots, horizon=10, image_size=32, threads=1) for _ in range(2)]
    # An out-of-distribution suite whose scene changes in the middle of an episode, and frames with noise.
    mixed = [*simulators[0].scenarios("execution", "train")[:4], *simulators[0].scenarios("vision", "train")[:5]]
    rng = np.random.default_rng(0)
    queues = [[deque(mixed[i] for i in rng.permutation(len(mixed))) for _ in range(slots)] for _ in range(2)]
    played, restored = (
        Host(simulator, lambda slot, queue=queue: queue[slot].popleft(), 10)
        for simulator, queue in zip(simulators, queues, strict=True)
    )
    scale = np.array([0.03, 0.03, 0.03, 0.15, 0.15, 0.15, 1.0])
    actions = (rng.uniform(-1, 1, (8, slots, chunk, 7)) * scale).astype(np.float32)
    played.start()
    tracks: list[list[np.ndarray]] = [[] for _ in range(slots)]
    for chunk_actions in actions[:5]:
        step = played.step(chunk_actions)
        for slot in range(slots):
            tracks[slot].append(chunk_actions[slot, step.valid[slot]])
    assert played.elapsed.max() > 0
    queues[1][:] = [queue.copy() for queue in queues[0]]
    restored.restore(
        [
            (what, np.concatenate(tracks[slot])[-played.elapsed[slot] :] if played.elapsed[slot] else zeros(1, 0, 7)[0])
            for slot, what in enumerate(played.scenarios)
            if what is not None
        ]
    )
    for chunk_actions in actions[5:]:
        for name in ("frames", "proprioception", "state"):
            assert np.array_equal(getattr(played.observation, name), getattr(restored.observation, name)), name
        assert played.scenarios == restored.scenarios
        assert_same(played.step(chunk_actions), restored.step(chunk_actions))
    for simulator in simulators:
        simulator.close()
