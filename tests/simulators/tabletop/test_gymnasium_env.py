import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import treadle.gymnasium  # noqa: F401
from treadle.errors import SimulatorError
from treadle.simulators.tabletop.gymnasium_env import ID


def test_the_environment_passes_gymnasiums_own_check():
    check_env(gymnasium.make(ID, render_mode="rgb_array").unwrapped)


def test_a_scenario_can_be_chosen_and_the_horizon_truncates():
    env = gymnasium.make(ID, suite="execution/position", split="evaluation", horizon=3)
    _, info = env.reset(options={"index": 12})
    assert info["scenario"] == "tabletop/execution/position/evaluation/000012"
    endings = [env.step(np.zeros(7, np.float32))[2:4] for _ in range(3)]
    assert endings == [(False, False), (False, False), (False, True)]


def test_an_action_that_is_no_number_is_refused():
    env = gymnasium.make(ID, disable_env_checker=True)
    env.reset(seed=0)
    action = np.zeros(7, np.float32)
    action[5] = np.inf
    with pytest.raises(SimulatorError, match=r"tabletop/train/train/\d+, slot 0: at control step 1 .* 'yaw' is inf"):
        env.unwrapped.step(action)
    env.close()


def test_make_vec_makes_several_that_start_again_by_themselves():
    envs = gymnasium.make_vec(ID, num_envs=3, horizon=2)
    first, infos = envs.reset(seed=0)
    assert envs.observation_space.contains(first)
    assert len(set(infos["scenario"])) == 3
    still = np.zeros((3, 7), np.float32)
    _, _, _, truncated, _ = envs.step(still)
    assert not truncated.any()
    _, _, _, truncated, _ = envs.step(still)
    assert truncated.all()
    fresh, reward, _, truncated, _ = envs.step(still)
    assert not truncated.any()
    assert (reward == 0).all()
    assert fresh["instruction"] != first["instruction"]
    again, _ = envs.reset(seed=0)
    assert (again["image"] == first["image"]).all()
    envs.close()
