"""What a host refuses of actions and outcomes, and names."""

import numpy as np
import pytest

from fake_simulator import FakeSimulator, one_after_another, scenario
from scripted_host import SCRIPTS, bits, make_host, zeros
from treadle.errors import SimulatorError
from treadle.simulators.host import Host


def test_an_action_that_is_no_number_is_refused_before_anything_is_played():
    host, simulator = make_host()
    host.start()
    host.step(zeros())
    actions = zeros()
    actions[1, 2, 1] = np.nan
    message = r"fake/train/train/000001, slot 1: at control step 7 the action's 'grip' is nan"
    with pytest.raises(SimulatorError, match=message):
        host.step(actions)
    assert simulator.limits == [[4, 4, 4]]


class Sending(FakeSimulator):
    """Puts something else into what it sends of slot 1, from the third control step of its episode on."""

    def __init__(self, **wrong) -> None:
        super().__init__(3, SCRIPTS)
        self.wrong = wrong

    def step(self, slots, actions, limits):
        count = self.steps[slots][:, None] + np.arange(actions.shape[1]) + 1
        outcome = super().step(slots, actions, limits)
        for name in self.wrong.keys() & {"reward", "state"}:
            getattr(outcome, name)[(slots == 1)[:, None] & (count > 2)] = self.wrong[name]
        return outcome

    def observe(self, slots, out):
        super().observe(slots, out)
        if "proprioception" in self.wrong and 1 in slots and self.steps[1] > 2:
            out.proprioception[1, 1] = self.wrong["proprioception"]


@pytest.mark.parametrize("filmed", [False, True])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reward": np.nan}, "at control step 3 the simulator 'fake' sent a reward of nan"),
        ({"reward": -np.inf}, "at control step 3 the simulator 'fake' sent a reward of -inf"),
        ({"state": np.nan}, "at control step 3 the simulator 'fake' sent a privileged state of nan"),
        ({"proprioception": np.nan}, "at control step 4 the simulator 'fake' sent a proprioception, entry 1, of nan"),
    ],
)
def test_a_number_of_the_simulator_that_is_not_finite_is_refused_by_its_place(filmed: bool, wrong, said: str):
    film = (lambda _: None) if filmed else None
    host = Host(Sending(**wrong), one_after_another(scenario(i) for i in range(4)), 10, on_action=film)
    host.start()
    with pytest.raises(SimulatorError, match=rf"fake/train/train/000001, slot 1: {said}"):
        host.step(zeros())


def test_what_is_not_finite_after_the_end_of_an_episode_is_no_number_of_it():
    class Rambling(FakeSimulator):
        def step(self, slots, actions, limits):
            outcome = super().step(slots, actions, limits)
            outcome.reward[slots == 0, 3] = outcome.state[slots == 0, 3] = np.nan
            return outcome

    host = Host(Rambling(3, SCRIPTS), one_after_another(scenario(i) for i in range(4)), 10)
    host.start()
    step = host.step(zeros())
    assert step.reward[0].tolist() == [1, 2, 3, 0]
    assert step.state[0].tolist() == [[0, 1], [0, 2], [0, 3], [0, 0]]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("reward", np.zeros(3, np.float32), r"reward as float32 \[3\]; it must be an array floating \[3, 4\]"),
        ("reward", np.zeros((3, 4), object), r"reward as object \[3, 4\]"),
        ("terminated", np.zeros((3, 4), np.int64), r"terminated as int64 \[3, 4\]; it must be an array bool \[3, 4\]"),
        ("success", None, "success as NoneType"),
        ("state", np.zeros((3, 4, 1), np.float32), r"state as float32 \[3, 4, 1\]; .* \[3, 4, 2\]"),
    ],
)
def test_an_outcome_of_another_shape_or_type_is_refused(name: str, value, said: str):
    class Odd(FakeSimulator):
        def step(self, slots, actions, limits):
            outcome = super().step(slots, actions, limits)
            setattr(outcome, name, value)
            return outcome

    host = Host(Odd(3, SCRIPTS), one_after_another(scenario(i) for i in range(4)), 10)
    host.start()
    with pytest.raises(SimulatorError, match=rf"fake: step\(\) returned {said}"):
        host.step(zeros())


def test_a_reward_beyond_float32_is_refused():
    class Rich(FakeSimulator):
        def step(self, slots, actions, limits):
            outcome = super().step(slots, actions, limits)
            outcome.reward = outcome.reward.astype(np.float64) * 1e39
            return outcome

    host = Host(Rich(3, SCRIPTS), one_after_another(scenario(i) for i in range(4)), 10)
    host.start()
    with pytest.raises(SimulatorError, match=r"slot 0: at control step 1 .* a reward of 1e\+39, no finite float32"):
        host.step(zeros())


def test_an_action_past_the_horizon_or_of_an_idle_slot_may_be_anything():
    simulator = FakeSimulator(2)
    host = Host(simulator, one_after_another([scenario(0)]), 6)
    host.start()
    actions = zeros(2)
    actions[1] = np.nan
    host.step(actions)
    actions[0, 2:] = np.inf
    step = host.step(actions)
    assert bits(step.valid) == ["xx..", "...."]
    assert np.isfinite(step.reward).all()
