"""Any Gymnasium environment as a simulator."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import reaching

from benchmarks.elsewhere import open_in_a_process
from fake_simulator import one_after_another
from treadle.data.observation import Observation
from treadle.environments.interpreter import Interpreter
from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.gymnasium import GymnasiumSimulator
from treadle.simulators.host import Host
from treadle.simulators.tabletop import Tabletop

ID = "reaching:Reaching-v0"
SLOTS = np.arange(2)


def make(slots: int = 2, **options) -> GymnasiumSimulator:
    return GymnasiumSimulator(slots, **{"id": ID, "horizon": 10} | options)


def observed(simulator: GymnasiumSimulator) -> Observation:
    out = simulator.spec.observation(simulator.slots)
    simulator.observe(np.arange(simulator.slots), out)
    return out


def chunk(*actions: tuple[float, float]) -> np.ndarray:
    return np.array([actions, actions], np.float32)


def test_what_there_is_only_one_of_needs_no_name():
    simulator = make()
    spec = simulator.spec
    assert (spec.name, spec.cameras) == (f"gymnasium:{ID}", ("agent/image0",))
    assert (spec.height, spec.width, spec.action_dim, spec.proprioception_dim, spec.control_hz) == (4, 6, 2, 2, 5.0)


@pytest.mark.parametrize(
    ("actions", "kinds"),
    [
        ({}, ["absolute", "absolute"]),
        ({"actions": "relative"}, ["relative", "relative"]),
        ({"actions": ["relative", "gripper"]}, ["relative", "gripper"]),
    ],
)
def test_what_actions_mean_is_said_by_an_option(actions, kinds):
    dimensions = make(**actions).spec.actions
    assert [dimension.kind for dimension in dimensions] == kinds
    assert [(dimension.name, dimension.metres) for dimension in dimensions] == [("a0", None), ("a1", None)]


def test_a_scenario_is_a_seed_and_says_what_is_asked():
    simulator = make()
    training, evaluation = (simulator.scenarios("train", split) for split in ("train", "evaluation"))
    assert len(training) == len(evaluation) == 1_000_000
    assert len({s.instruction for s in (*training[:10], *evaluation[:10])}) > 10
    assert training[3] == make().scenarios("train", "train")[3]
    assert training[-1].index == 999_999
    simulator.reset(SLOTS, [training[3], evaluation[3]])
    seen = observed(simulator)
    asked = [training[3].instruction, evaluation[3].instruction]
    assert [f"go to {frame[0, 0, 0, 0]}" for frame in seen.frames] == asked


@pytest.mark.parametrize("options", [{"instruction_key": "agent/asked"}, {}])
def test_an_instruction_in_the_observation(options):
    simulator = make(environment={"says": "text"}, **options)
    assert simulator.scenarios("train", "train")[0].instruction.startswith("go to ")


def test_one_instruction_for_all():
    simulator = make(environment={"says": "nothing"}, instruction="cross the line")
    assert {s.instruction for s in simulator.scenarios("train", "train")[:5]} == {"cross the line"}


def test_an_environment_that_does_not_follow_its_seed_is_found_out(monkeypatch):
    simulator = make()
    scenarios = simulator.scenarios("train", "train")[:2]
    drawn = iter(range(100))
    monkeypatch.setattr(reaching.Reaching, "info", lambda self, at_end: {"instruction": f"go {next(drawn)}"})
    with pytest.raises(SimulatorError, match=r"000000, slot 0: .* must follow from the seed"):
        simulator.reset(SLOTS, scenarios)


def test_a_chunk_is_played_until_the_goal_or_the_limit():
    simulator = make()
    simulator.reset(SLOTS, simulator.scenarios("train", "train")[:2])
    outcome = simulator.step(SLOTS, chunk((0.5, 1), (0.5, 2), (0.5, 2)), np.array([3, 1]))
    assert outcome.reward.tolist() == [[1, 2, 0], [1, 0, 0]]
    assert outcome.terminated.tolist() == outcome.success.tolist() == [[False, True, False], [False] * 3]
    assert observed(simulator).proprioception.tolist() == [[1, 0], [0.5, 0]]


def test_slots_that_are_not_addressed_stand_still():
    simulator = make()
    simulator.reset(SLOTS, simulator.scenarios("train", "train")[:2])
    simulator.step(SLOTS[1:], chunk((0.25, 0))[1:], np.ones(1, np.intp))
    assert observed(simulator).proprioception[:, 0].tolist() == [0, 0.25]


@pytest.mark.parametrize(
    ("action_range", "given", "played"),
    [
        (None, (0.2, 1.5), (0.2, 1.5)),
        (None, (7, -7), (0.5, 0)),
        ([-1, 1], (-1, -1), (-0.5, 0)),
        ([-1, 1], (0.5, 0.5), (0.25, 1.5)),
        ([0, 1], (3, 1), (0.5, 2)),
    ],
)
def test_actions_are_mapped_and_clipped(action_range, given, played):
    simulator = make(1, action_range=action_range)
    simulator.reset(SLOTS[:1], simulator.scenarios("train", "train")[:1])
    simulator.step(SLOTS[:1], chunk(given)[:1], np.ones(1, np.intp))
    assert simulator._environments[0].unwrapped.played == pytest.approx(played)


@pytest.mark.parametrize(
    ("success", "expected"),
    [(None, True), ("nested/reached", True), ("late", True), ("terminated", True)],
)
def test_success_is_where_it_is_said_to_be(success, expected):
    simulator = make(1, success=success)
    simulator.reset(SLOTS[:1], simulator.scenarios("train", "train")[:1])
    outcome = simulator.step(SLOTS[:1], chunk((0.5, 0), (0.5, 0))[:1], np.full(1, 2))
    assert outcome.success.tolist() == [[False, expected]]


def test_several_cameras_and_no_proprioception():
    simulator = make(environment={"cameras": 2}, image=["agent/image1", "agent/image0"], proprioception="")
    assert (simulator.spec.cameras, simulator.spec.proprioception_dim) == (("agent/image1", "agent/image0"), 0)
    simulator.reset(SLOTS, simulator.scenarios("train", "train")[:2])
    frames = observed(simulator).frames.astype(int)
    assert (frames[:, 0] - frames[:, 1] == 1).all()


def test_an_environment_that_only_draws():
    simulator = make(id="reaching:Drawn-v0", image="render", instruction="move", success="terminated")
    assert (simulator.spec.cameras, simulator.spec.height, simulator.spec.proprioception_dim) == (("render",), 8, 3)
    simulator.reset(SLOTS, simulator.scenarios("train", "train")[:2])
    assert (observed(simulator).frames == 7).all()
    assert simulator.render(SLOTS, 16).shape == (2, 16, 16, 3)


def test_frames_for_people_keep_their_shape():
    simulator = make()
    simulator.reset(SLOTS, simulator.scenarios("train", "train")[:2])
    frame = simulator.render(SLOTS, 12)[0]
    assert frame.shape == (12, 12, 3)
    assert (frame[[0, 1, 10, 11]] == 0).all()
    assert (frame[2:10] == int(simulator._playing[0].instruction.split()[-1])).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": ""}, "write gymnasium:ID"),
        ({"id": "NoSuch-v0"}, "cannot make the Gymnasium environment 'NoSuch-v0'"),
        ({"id": "no_such_module:NoSuch-v0"}, "No module named 'no_such_module'"),
        ({"environment": {"wheels": 4}}, "wheels"),
        ({"image": "front"}, r"'front' is no image .* they hold: agent/image0 \[4, 6, 3\] uint8"),
        ({"environment": {"cameras": 2}}, "2 images"),
        ({"environment": {"cameras": 0}}, "no image"),
        ({"image": "render"}, "no render_mode 'rgb_array'"),
        ({"proprioception": "agent/image0"}, "no vector of numbers"),
        ({"environment": {"vectors": 2}}, "agent/vector0, agent/vector1; name one, or '' for none"),
        ({"environment": {"says": "nothing"}}, r"no text .*info of reset\(\) \(success, nested\)"),
        ({"instruction_key": "asked"}, "no text at 'asked'"),
        ({"instruction": "go", "instruction_key": "asked"}, "set one of the two"),
        ({"action_range": [1, -1]}, "lowest and the highest"),
        ({"id": "reaching:Drawn-v0", "image": "render", "instruction": "x", "action_range": [0, 1]}, "no bounds"),
        ({"actions": "sideways"}, "simulator.options.actions: 'sideways'; give one of relative, absolute, gripper"),
        ({"actions": ["relative"]}, "a list of 2 of them"),
        ({"id": "CartPole-v1", "image": "render", "instruction": "x"}, "must be a Box"),
    ],
)
def test_what_does_not_fit_is_said(options, said):
    with pytest.raises(ConfigError, match=said):
        make(**options)


def test_success_that_is_nowhere_is_said_at_once():
    simulator = make(id="reaching:Drawn-v0", image="render", instruction="x")
    simulator.reset(SLOTS, simulator.scenarios("train", "train")[:2])
    with pytest.raises(SimulatorError, match=r"holds no 'success' or 'is_success', only: nothing"):
        simulator.step(SLOTS, np.zeros((2, 1, 1), np.float32), np.ones(2, np.intp))


def playing(monkeypatch, **sent) -> GymnasiumSimulator:
    """One slot, after the reset, of an environment whose step returns something else."""
    simulator = make(1)
    simulator.reset(SLOTS[:1], simulator.scenarios("train", "train")[:1])
    inner = reaching.Reaching.step

    def step(self, action):
        fields = dict(
            zip(("observation", "reward", "terminated", "truncated", "info"), inner(self, action), strict=True)
        )
        return tuple((fields | sent).values())

    monkeypatch.setattr(reaching.Reaching, "step", step)
    monkeypatch.setattr("gymnasium.wrappers.PassiveEnvChecker.step", lambda self, action: self.env.step(action))
    return simulator


def play(simulator: GymnasiumSimulator):
    return simulator.step(SLOTS[:1], chunk((0.25, 0.5))[:1], np.ones(1, np.intp))


@pytest.mark.parametrize(
    ("reward", "earned"),
    [
        (np.array([1.5]), 1.5),
        (np.float64(1.5), 1.5),
        (np.array([[2]]), 2),
        (3, 3),
        (True, 1),
        ([0.5], 0.5),
        (1e30, 1e30),
    ],
)
def test_a_reward_is_one_number_however_it_is_held(monkeypatch, reward, earned):
    assert play(playing(monkeypatch, reward=reward)).reward.tolist() == [[np.float32(earned)]]


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ({"reward": None}, "reward None where a number belongs"),
        ({"reward": "1"}, "reward '1' where a number belongs"),
        ({"reward": np.array([1.0, 2.0])}, r"reward float64 \[2\] where a number belongs"),
        ({"reward": {}}, "reward {} where a number belongs"),
        ({"terminated": None}, "terminated None where true or false belongs"),
        ({"terminated": "no"}, "terminated 'no' where true or false belongs"),
        ({"terminated": np.array([True, False])}, r"terminated bool \[2\] where true or false belongs"),
        ({"truncated": 0.5}, "truncated 0.5 where true or false belongs"),
        ({"info": {"success": "False"}}, "info 'success' 'False' where true or false belongs"),
        ({"info": {"success": np.nan}}, "info 'success' nan where true or false belongs"),
        ({"info": {"success": np.array([True, False])}}, r"info 'success' bool \[2\] where true or false belongs"),
    ],
)
def test_what_is_no_reward_or_flag_is_refused_by_its_place(monkeypatch, sent, found):
    said = rf"Reaching-v0/train/train/000000, slot 0: at control step 1 the environment sent {found}"
    with pytest.raises(SimulatorError, match=said):
        play(playing(monkeypatch, **sent))


@pytest.mark.parametrize("flag", [True, np.True_, np.array([True]), np.array(1), 1, 1.0])
def test_a_flag_is_one_truth_however_it_is_held(monkeypatch, flag):
    outcome = play(playing(monkeypatch, terminated=flag, info={"success": flag}))
    assert outcome.terminated.tolist() == outcome.success.tolist() == [[True]]


def test_a_success_of_none_is_one_that_is_not_there(monkeypatch):
    with pytest.raises(SimulatorError, match=r"step 1 holds no 'success' or 'is_success', only: success None; name"):
        play(playing(monkeypatch, info={"success": None}))


def test_a_reward_that_is_no_number_is_stopped_by_the_host(monkeypatch):
    simulator = playing(monkeypatch, reward=np.array([np.nan]))
    host = Host(simulator, one_after_another(simulator.scenarios("train", "train")[:1]), 10)
    host.start()
    said = r"Reaching-v0/train/train/000000, slot 0: at control step 1 the simulator 'gymnasium:.* sent a reward of nan"
    with pytest.raises(SimulatorError, match=said):
        host.step(chunk((0.25, 0.5))[:1])


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ({"image0": np.ones((4, 6, 3), np.float32)}, r"image 'agent/image0' float32 \[4, 6, 3\] where a frame uint8"),
        ({"image0": np.ones((3, 4, 6), np.uint8)}, r"image 'agent/image0' uint8 \[3, 4, 6\] where a frame"),
        ({"image0": np.ones((8, 6, 3), np.uint8)}, r"image 'agent/image0' uint8 \[8, 6, 3\] where .* \[4, 6, 3\]"),
        ({"image0": None}, "image 'agent/image0' None where"),
        ({"vector0": np.zeros(1)}, r"observation 'agent/vector0' array\(\[0.\]\) where 2 numbers belongs"),
        ({"vector0": np.zeros(3)}, r"observation 'agent/vector0' float64 \[3\] where 2 numbers"),
        ({"vector0": None}, "observation 'agent/vector0' None where 2 numbers"),
        ({"vector0": np.array(["a", "b"])}, r"observation 'agent/vector0' <U1 \[2\] where 2 numbers"),
    ],
)
def test_an_observation_that_is_not_as_its_space_says_is_refused(monkeypatch, held, found):
    good = {"image0": np.ones((4, 6, 3), np.uint8), "vector0": np.zeros(2)}
    simulator = playing(monkeypatch, observation={"agent": good | held})
    play(simulator)
    said = rf"Reaching-v0/train/train/000000, slot 0: at control step 1 the environment sent {found}"
    with pytest.raises(SimulatorError, match=said):
        observed(simulator)


def test_a_time_limit_below_the_horizon_is_said():
    simulator = make(environment={"limit": 3})
    simulator.reset(SLOTS, simulator.scenarios("train", "train")[:2])
    with pytest.raises(SimulatorError, match=r"cuts its episode after 3 steps, below simulator.horizon 10"):
        simulator.step(SLOTS, chunk(*[(0, 0)] * 5), np.full(2, 5))


@pytest.mark.integration
def test_the_tabletop_through_gymnasium_is_the_tabletop():
    """The same scenarios by index, through two interfaces, give the same episodes."""
    through = GymnasiumSimulator(1, id="treadle.gymnasium:treadle/Tabletop-v0", horizon=6)
    direct = Tabletop(1, horizon=6, threads=1)
    asked = through.scenarios("train", "evaluation")[0]
    environment = through._environments[0].unwrapped
    environment.reset(seed=1_000_000 + asked.index)
    index = int(np.random.default_rng(1_000_000).integers(1_000_000))
    same = direct.scenarios("train", "train")[index]
    assert asked.instruction == same.instruction
    hosts = [Host(simulator, one_after_another([s]), 6) for simulator, s in ((through, asked), (direct, same))]
    for host in hosts:
        host.start()
    rng = np.random.default_rng(0)
    for _ in range(2):
        assert np.array_equal(hosts[0].observation.frames, hosts[1].observation.frames)
        actions = (rng.uniform(-1, 1, (1, 3, 7)) * [0.03, 0.03, 0.03, 0.15, 0.15, 0.15, 1]).astype(np.float32)
        steps = [host.step(actions) for host in hosts]
        assert np.array_equal(steps[0].reward, steps[1].reward)
        assert np.array_equal(steps[0].truncated, steps[1].truncated)
    through.close()
    through.close()
    direct.close()


@pytest.mark.integration
def test_it_runs_in_an_interpreter_of_ones_own():
    options = {"id": "treadle.gymnasium:treadle/Tabletop-v0", "environment": {"image_size": 32}}
    target = "treadle.simulators.gymnasium:GymnasiumSimulator"
    factory = SimulatorFactory(target, {"horizon": 8, **options}, Interpreter(sys.executable))
    apart, here = open_in_a_process(factory, 2), GymnasiumSimulator(2, horizon=8, **options)
    try:
        scenarios = here.scenarios("train", "train")[:2]
        assert apart.scenarios("train", "train")[:2] == scenarios
        seen = []
        for simulator in (apart, here):
            host = Host(simulator, one_after_another(scenarios), 8)
            host.start()
            host.step(np.full((2, 3, 7), 0.01, np.float32))
            seen.append(host.observation)
        assert np.array_equal(seen[0].frames, seen[1].frames)
        assert np.array_equal(seen[0].proprioception, seen[1].proprioception)
    finally:
        apart.close()
        here.close()
