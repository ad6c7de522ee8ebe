"""Endings, partial reset and statistics of the host, on a simulator that goes by a script."""

from dataclasses import fields

import numpy as np
import pytest

from fakes import FakeSimulator, Script, scenario
from treadle.data.observation import Observation
from treadle.data.step import Step
from treadle.rollout.stream import ScenarioStream
from treadle.simulators.host import Host, one_after_another
from treadle.simulators.tabletop import Tabletop

SCRIPTS = {
    0: Script(ends=3, succeeds=(3,)),
    1: Script(succeeds=(2,)),
    2: Script(ends=10),
    3: Script(ends=4, succeeds=(1, 4)),
}
"""With horizon 10 and chunks of 4: ends in a chunk; is truncated; terminates at the horizon; ends with its chunk."""


def make_host(**options) -> tuple[Host, FakeSimulator]:
    simulator = FakeSimulator(3, SCRIPTS)
    return Host(simulator, one_after_another(scenario(i) for i in range(4)), 10, **options), simulator


def zeros(slots: int = 3, chunk: int = 4, action_dim: int = 2) -> np.ndarray:
    return np.zeros((slots, chunk, action_dim), np.float32)


def bits(x: np.ndarray) -> list[str]:
    return ["".join("x" if bit else "." for bit in row) for row in x]


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
    assert observation.instructions == ["do 3", "do 1", "do 2"]
    assert step.final_slots.tolist() == [0]
    assert step.final.state.tolist() == [[0, 3]]
    assert step.final.instructions == ["do 0"]
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


@pytest.mark.parametrize(("keep", "kept"), [("truncated", [[], [], [1]]), ("ended", [[0], [0], [1, 2]])])
def test_final_holds_the_observations_that_are_asked_for(keep, kept):
    host, _ = make_host(keep_final=keep)
    host.start()
    steps = [host.step(zeros()) for _ in range(3)]
    assert [step.final_slots.tolist() for step in steps] == kept
    assert [len(step.final.frames) for step in steps] == [len(slots) for slots in kept]


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


def test_frames_are_drawn_where_the_policy_looks_and_nowhere_else(monkeypatch):
    host, simulator = make_host()
    drawn: list[list[int]] = []
    observe = simulator.observe
    monkeypatch.setattr(simulator, "observe", lambda slots, out: (drawn.append(slots.tolist()), observe(slots, out)))
    host.start()
    host.step(zeros())
    assert drawn == [[0, 1, 2]] * 2, "once for four actions"
    host.restore([(scenario(1), zeros(1, 8)[0]), None, None])
    assert drawn[2:] == [[0]], "and not for what is played again"
    host.step(zeros())
    assert drawn[3:] == [[0]], "the last one of an episode that was cut; nothing follows"


class AskedOnce(FakeSimulator):
    """Steps and observes in one call, and notes whom it draws."""

    def __init__(self, slots: int, scripts: dict[int, Script]) -> None:
        super().__init__(slots, scripts)
        self.drawn: list[list[int]] = []

    def step_and_observe(self, slots, actions, limits, wanted, out):
        outcome = self.step(slots, actions, limits)
        self.observe(slots[wanted & ~outcome.terminated.any(axis=1)], out)
        return outcome

    def observe(self, slots, out):
        self.drawn.append(slots.tolist())
        super().observe(slots, out)


@pytest.mark.parametrize(
    ("keep", "drawn"),
    [
        # A new episode of slot 0 begins in the first chunk; slot 1 is cut in the third, where slot 2 terminates.
        ("none", [[0, 1, 2], [1, 2], [0], [1, 2], []]),
        ("truncated", [[0, 1, 2], [1, 2], [0], [1, 2], [1]]),
        ("ended", [[0, 1, 2], [1, 2], [0], [0], [1, 2], [0], [1], [2]]),
    ],
)
def test_a_simulator_that_is_asked_once_plays_the_same_and_draws_each_moment_once(keep, drawn):
    simulator, (plain, _) = AskedOnce(3, SCRIPTS), make_host(keep_final=keep)
    host = Host(simulator, one_after_another(scenario(i) for i in range(4)), 10, keep_final=keep)
    assert_same_observation(host.start(), plain.start())
    for chunk in np.random.default_rng(0).random((3, 3, 4, 2)).astype(np.float32):
        step, expected = host.step(chunk), plain.step(chunk)
        assert_same(step, expected)
        assert_same_observation(host.observation, plain.observation)
    assert simulator.drawn == drawn


def test_idle_slots_are_restored_idle():
    host, _ = make_host()
    host.start()
    host.restore([None] * 3)
    assert not len(host.playing)
    assert bits(host.step(zeros()).valid) == ["...."] * 3


def test_an_episode_that_does_not_repeat_itself_starts_over_and_sits_a_chunk_out():
    """Scenario 0 ends at step 3, so that it cannot have had four actions."""
    host, _ = make_host()
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
    streams = [ScenarioStream(mixed, slots, seed=1) for _ in range(2)]
    played, restored = (Host(simulator, stream, 10) for simulator, stream in zip(simulators, streams, strict=True))
    rng = np.random.default_rng(0)
    scale = np.array([0.03, 0.03, 0.03, 0.15, 0.15, 0.15, 1.0])
    actions = (rng.uniform(-1, 1, (8, slots, chunk, 7)) * scale).astype(np.float32)
    played.start()
    tracks: list[list[np.ndarray]] = [[] for _ in range(slots)]
    for chunk_actions in actions[:5]:
        step = played.step(chunk_actions)
        for slot in range(slots):
            tracks[slot].append(chunk_actions[slot, step.valid[slot]])
    assert played.elapsed.max() > 0
    streams[1].episodes[:] = streams[0].episodes
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
        assert played.observation.instructions == restored.observation.instructions
        assert_same(played.step(chunk_actions), restored.step(chunk_actions))
    for simulator in simulators:
        simulator.close()
