import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

import treadle.gymnasium  # noqa: F401
from treadle.simulators.tabletop.gymnasium_env import ID


def test_the_environment_passes_gymnasiums_own_check():
    check_env(gymnasium.make(ID, render_mode="rgb_array").unwrapped)


def test_a_scenario_can_be_chosen_and_the_horizon_truncates():
    env = gymnasium.make(ID, suite="execution/position", split="evaluation", horizon=3)
    _, info = env.reset(options={"index": 12})
    assert info["scenario"] == "tabletop/execution/position/evaluation/000012"
    endings = [env.step(np.zeros(7, np.float32))[2:4] for _ in range(3)]
    assert endings == [(False, False), (False, False), (False, True)]


def test_the_vector_environment_is_one_simulator_with_autoreset():
    envs = gymnasium.make_vec(ID, num_envs=3, horizon=2)
    first, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(first)
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
