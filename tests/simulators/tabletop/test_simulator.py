from collections.abc import Callable

import numpy as np
import pytest

from treadle.data.observation import Observation
from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.protocol import Expert
from treadle.simulators.tabletop import Tabletop, task
from treadle.simulators.tabletop.layout import CONCRETE
from treadle.simulators.tabletop.scene import PLATE_THICKNESS

Build = Callable[..., Tabletop]
Observe = Callable[[Tabletop], Observation]


def one(simulator: Tabletop, slots: np.ndarray) -> np.ndarray:
    return np.ones(len(slots), np.intp)


def grasp(simulator: Tabletop, offset: tuple[float, float] = (0.0, 0.0)) -> None:
    """Close the fingers around every named object, off its centre by `offset`, and lift it 6 cm."""
    slots, records = np.arange(simulator.slots), simulator.records
    target = records.objects(slots)[:, 0].copy()
    target[:, :2] += offset
    for _ in range(8):
        drive(simulator, np.c_[target[:, :2], np.full(len(slots), 0.1)], 1)
    for _ in range(5):
        drive(simulator, target, 1)
    for _ in range(3):
        drive(simulator, target, 0)
    for _ in range(4):
        drive(simulator, target + np.array([0, 0, 0.06]), 0)


def drive(simulator: Tabletop, target: np.ndarray, gripper: float):
    slots = np.arange(simulator.slots)
    actions = np.zeros((len(slots), 1, 7), np.float32)
    actions[:, 0, :3] = target - simulator.records.goal[:, :3]
    actions[:, 0, 6] = gripper
    return simulator.step(slots, actions, one(simulator, slots))


@pytest.mark.parametrize("suite", ["train", "vision", "semantic", "execution/moved"])
def test_a_scenario_is_the_same_in_any_slot_batch_and_thread(
    build: Build, observe: Observe, random_actions, suite: str
):
    scenarios = build(1, threads=1).scenarios(suite, "train")[:6]
    actions = random_actions(6, 12)

    def play(simulator: Tabletop, slots: list[int], which: list[int], chunk: int):
        simulator.reset(np.array(slots), [scenarios[i] for i in which])
        first = observe(simulator) if len(slots) == simulator.slots else None
        rewards = []
        for start in range(0, 12, chunk):
            outcome = simulator.step(
                np.array(slots), actions[which][:, start : start + chunk], np.full(len(slots), chunk)
            )
            rewards.append(outcome.reward)
        out = observe(simulator) if len(slots) == simulator.slots else None
        order = np.argsort(which)
        rows = np.array(slots)[order]
        frames = [o.frames[rows] for o in (first, out) if o]
        return np.concatenate(rewards, 1)[order], simulator.records.qpos[rows], frames

    reward, qpos, frames = play(build(6, threads=1), [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], 4)
    again = play(build(6, threads=2), [5, 3, 1, 0, 2, 4], [0, 1, 2, 3, 4, 5], 1)
    assert (again[0] == reward).all()
    assert (again[1] == qpos).all()
    assert all((a == b).all() for a, b in zip(again[2], frames, strict=True))
    used = build(1, threads=1)
    for i in range(6):
        alone = play(used, [0], [i], 12)
        assert (alone[0] == reward[i]).all()
        assert (alone[1] == qpos[i]).all()
        assert all((a[0] == b[i]).all() for a, b in zip(alone[2], frames, strict=True))


def test_observing_does_not_change_what_happens(build: Build, observe: Observe, random_actions):
    actions = random_actions(4, 8)
    watched, blind = build(4), build(4)
    for simulator in (watched, blind):
        simulator.reset(np.arange(4), simulator.scenarios("train", "train")[:4])
        for c in range(8):
            if simulator is watched:
                observe(simulator)
                simulator.render(np.arange(4), 32)
            simulator.step(np.arange(4), actions[:, c : c + 1], np.ones(4, np.intp))
    assert (watched.records.qpos == blind.records.qpos).all()


def test_slots_that_are_not_addressed_stand_still(build: Build, observe: Observe, random_actions):
    simulator = build(4, threads=2)
    simulator.reset(np.arange(4), simulator.scenarios("train", "train")[:4])
    simulator.step(np.arange(4), random_actions(4, 5), np.full(4, 5))
    before, qpos = observe(simulator), simulator.records.qpos.copy()
    simulator.reset(np.array([1]), simulator.scenarios("semantic/distractor_plate", "train")[:1])
    simulator.step(np.array([1]), random_actions(1, 3), np.array([3]))
    after, others = observe(simulator), [0, 2, 3]
    assert (simulator.records.qpos[others] == qpos[others]).all()
    for name in ("frames", "proprioception", "state"):
        assert (getattr(after, name)[others] == getattr(before, name)[others]).all()
    assert (after.frames[1] != before.frames[1]).any()


def test_no_more_actions_are_played_than_limits_say(build: Build, random_actions):
    simulator = build(3)
    simulator.reset(np.arange(3), simulator.scenarios("train", "train")[:3])
    outcome = simulator.step(np.arange(3), random_actions(3, 4), np.array([0, 2, 4]))
    assert simulator.records.step.tolist() == [0, 2, 4]
    assert (outcome.reward[0] == 0).all()
    assert (outcome.reward[1, 2:] == 0).all()
    assert (outcome.reward[2] != 0).all()


@pytest.mark.parametrize("suite", CONCRETE)
def test_every_suite_is_seen_and_solved(build: Build, observe: Observe, suite: str):
    simulator = build(16)
    slots = np.arange(16)
    simulator.reset(slots, simulator.scenarios(suite, "evaluation")[:16])
    out = observe(simulator)
    assert out.frames.std((1, 2, 3, 4)).min() > 10
    assert np.isfinite(out.state).all()
    assert np.abs(out.state).max() <= 5
    assert solve(simulator, simulator.expert(0)).mean() >= 0.9


def test_the_expert_solves_training_scenes_quickly(build: Build):
    simulator = build(64)
    simulator.reset(np.arange(64), simulator.scenarios("train", "train")[:64])
    lengths = solve(simulator, simulator.expert(0))
    assert (lengths > 0).mean() >= 0.95
    assert 12 <= np.median(lengths[lengths > 0]) <= 20


def test_the_expert_recovers_from_its_mistakes(build: Build):
    simulator = build(64)
    simulator.reset(np.arange(64), simulator.scenarios("train", "train")[:64])
    lengths = solve(simulator, simulator.expert(0, miss_probability=1.0))
    assert (lengths > 0).mean() >= 0.9
    assert np.quantile(lengths[lengths > 0], 0.9) > 22


def solve(simulator: Tabletop, expert: Expert) -> np.ndarray:
    """Lengths of the expert's episodes, 0 where it failed."""
    lengths = np.zeros(simulator.slots, np.intp)
    for step in range(simulator.spec.horizon):
        live = np.flatnonzero(lengths == 0)
        if not len(live):
            break
        outcome = simulator.step(live, expert.act(live)[:, None], one(simulator, live))
        lengths[live[outcome.terminated[:, 0]]] = step + 1
    return lengths


@pytest.mark.parametrize("angle", range(0, 360, 45))
def test_a_grasp_forgives_an_error_of_12_mm(build: Build, angle: int):
    simulator = build(24)
    simulator.reset(np.arange(24), simulator.scenarios("train", "train")[:24])
    grasp(simulator, (0.012 * np.cos(np.radians(angle)), 0.012 * np.sin(np.radians(angle))))
    assert task.held(simulator.records, np.arange(24)).mean() >= 0.95
    assert (simulator.records.objects(np.arange(24))[:, 0, 2] > 0.06).mean() >= 0.95


def test_friction_holds_what_is_lifted_and_opening_drops_it(build: Build):
    simulator = build(8)
    slots = np.arange(8)
    simulator.reset(slots, simulator.scenarios("train", "train")[:8])
    grasp(simulator)
    high = simulator.records.objects(slots)[:, 0, 2].copy()
    assert (high > 0.06).all()
    for _ in range(40):
        drive(simulator, simulator.records.goal[:, :3], 0)
    assert np.abs(simulator.records.objects(slots)[:, 0, 2] - high).max() < 0.003
    for _ in range(6):
        drive(simulator, simulator.records.goal[:, :3], 1)
    assert (simulator.records.objects(slots)[:, 0, 2] < 0.035).all()


def test_success_needs_release(build: Build):
    simulator = build(8)
    slots, records = np.arange(8), simulator.records
    simulator.reset(slots, simulator.scenarios("train", "train")[:8])
    grasp(simulator)
    carried = records.goal[:, :2] - records.objects(slots)[:, 0, :2]
    below = PLATE_THICKNESS + records.goal[:, 2] - (records.objects(slots)[:, 0, 2] - records.half)
    spot = np.c_[records.plates[:, 0] + carried, records.goal[:, 2]]
    for _ in range(10):
        drive(simulator, spot, 0)
    for _ in range(4):
        outcome = drive(simulator, np.c_[spot[:, :2], below], 0)
        assert not outcome.success.any()
    # The objects already stand on their plates, between the fingers.
    assert records.contact[:, -1].mean() > 0.8
    assert task.held(records, slots).mean() > 0.8
    released = np.zeros(8, np.bool_)
    for _ in range(4):
        released |= drive(simulator, records.goal[:, :3], 1).success[:, 0]
    assert released.all()


def test_an_episode_stops_at_its_success(build: Build):
    simulator = build(4)
    slots = np.arange(4)
    simulator.reset(slots, simulator.scenarios("train", "train")[:4])
    expert = simulator.expert(0)
    while not (outcome := simulator.step(slots, chunk(expert, slots), np.full(4, 4))).terminated.any():
        pass
    row = int(outcome.terminated.any(1).argmax())
    end = int(outcome.terminated[row].argmax())
    assert outcome.terminated[row].sum() == 1
    assert (outcome.reward[row, end + 1 :] == 0).all()
    assert outcome.reward[row, end] > 1


def chunk(expert: Expert, slots: np.ndarray) -> np.ndarray:
    """One expert action, then three that hold still."""
    first = expert.act(slots)
    hold = first.copy()
    hold[:, :6] = 0
    return np.stack([first, hold, hold, hold], 1)


def test_shaping_telescopes(build: Build):
    simulator, sparse = build(16), build(16, reward="sparse")
    slots = np.arange(16)
    for each in (simulator, sparse):
        each.reset(slots, each.scenarios("train", "train")[:16])
    start = simulator.records.potential.copy()
    expert, total, plain = simulator.expert(0, miss_probability=0.5), np.zeros(16), np.zeros(16)
    done = np.zeros(16, np.bool_)
    for _ in range(60):
        live = slots[~done]
        if not len(live):
            break
        actions = expert.act(live)[:, None]
        outcome = simulator.step(live, actions, one(simulator, live))
        total[live] += outcome.reward[:, 0]
        plain[live] += sparse.step(live, actions, one(sparse, live)).reward[:, 0]
        done[live] = outcome.success[:, 0]
    shaping = simulator.records.potential - start
    assert np.allclose(total, done + 0.1 * simulator.records.grasped + shaping, atol=1e-5)
    assert (plain == done).all()
    assert shaping[done].min() > 0.4
    assert shaping[done].max() < 1.1


def test_the_moved_object_moves_unless_grasped(build: Build):
    simulator = build(4)
    slots = np.arange(4)
    simulator.reset(slots, simulator.scenarios("execution/moved", "train")[:4])
    before = simulator.records.objects(slots)[:, 0].copy()
    still = np.zeros((4, 6, 7), np.float32)
    simulator.step(slots, still[:, :5], np.full(4, 5))
    assert np.abs(simulator.records.objects(slots)[:, 0] - before).max() < 0.001
    simulator.step(slots, still[:, :1], np.ones(4, np.intp))
    assert (np.linalg.norm(simulator.records.objects(slots)[:, 0] - before, axis=1) > 0.09).all()


def test_image_noise_differs_between_steps_only(build: Build, observe: Observe):
    simulator = build(1)
    simulator.reset(np.array([0]), simulator.scenarios("vision/noise", "train")[:1])
    assert (observe(simulator).frames == observe(simulator).frames).all()
    first = observe(simulator).frames
    simulator.step(np.array([0]), np.zeros((1, 1, 7), np.float32), np.array([1]))
    assert (observe(simulator).frames != first).mean() > 0.5


def test_mistakes_of_the_caller_are_named(build: Build):
    simulator = build(2)
    with pytest.raises(SimulatorError, match="slot 1 was never reset"):
        simulator.step(np.array([1]), np.zeros((1, 1, 7), np.float32), np.array([1]))
    simulator.reset(np.array([1]), simulator.scenarios("train", "train")[:1])
    with pytest.raises(ConfigError, match="dense"):
        build(1, reward="dense")


def test_render_is_for_any_size(build: Build):
    simulator = build(2)
    simulator.reset(np.arange(2), simulator.scenarios("train", "train")[:2])
    frames = simulator.render(np.array([1, 0]), 96)
    assert frames.shape == (2, 96, 96, 3)
    assert frames.dtype == np.uint8
    assert (frames[0] != frames[1]).any()
