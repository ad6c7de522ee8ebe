"""Demonstrations that an expert plays: jitter, and which are kept."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fake_simulator import ACTIONS, Script, TeachingSimulator
from miniature import TWO_ARMS
from treadle.config.supervised import DemonstrationConfig
from treadle.data.demonstrations import read_demonstrations
from treadle.data.noise import noise_key, normal
from treadle.errors import ConfigError
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.protocol import ActionDimension
from treadle.supervised.demonstrations import record_demonstrations
from treadle.workers.crew import Crew, CrewPlan


class Tracking(TeachingSimulator):
    """Keeps every action that each scenario's episode has played; its expert asks for the motion 1, open."""

    def __init__(self, slots: int, actions: tuple[ActionDimension, ...] = ACTIONS, fails: int | None = None) -> None:
        super().__init__(slots, {index: Script(ends=3, succeeds=(3,)) for index in range(20) if index != fails})
        self.spec = replace(self.spec, actions=actions)
        self.played: dict[int, list[list[float]]] = {}

    def step(self, slots, actions, limits):
        for row, slot in enumerate(slots.tolist()):
            self.played.setdefault(self.now[slot].index, []).append(actions[row, 0].tolist())  # type: ignore[union-attr]
        return super().step(slots, actions, limits)

    def expert(self, seed, *, miss_probability=0.0):
        return Pulling()


class Pulling:
    def act(self, slots):
        return np.ones((len(slots), 2), np.float32)


def played(simulator: Tracking) -> dict[int, list[list[float]]]:
    """Called where the simulator is."""
    return simulator.played


@contextmanager
def tracking(slots: int, *, lanes: int = 1, workers: int = 1, **options) -> Iterator[Crew]:
    factory = SimulatorFactory(f"{__name__}:Tracking", options)
    with Crew(CrewPlan(factory, slots, lanes=lanes, workers=workers)) as crew:
        yield crew


def played_with(folder: Path, slots: int, *, lanes: int = 1, workers: int = 1, **settings) -> np.ndarray:
    """[episodes, steps, dimensions] what was played."""
    config = DemonstrationConfig(episodes=5, **settings)
    with tracking(slots, lanes=lanes, workers=workers) as crew:
        assert record_demonstrations(crew, config, 0, folder, lambda *_: None) == 1
        by_index = {}
        for worker in range(crew.workers):
            by_index |= crew.call(f"{__name__}:played", worker=worker)
    return np.array([by_index[index] for index in range(5)])


def test_jitter_is_in_metres_on_translations_alone_and_is_not_recorded(tmp_path: Path):
    played = played_with(tmp_path / "d", 2, jitter=0.05)
    # Of the fake simulator 1 is half a metre, so that 5 cm are 0.1.
    assert (played[..., 1] == 1).all()
    noise = played[..., 0] - 1
    assert 0.05 < noise.std() < 0.2
    assert noise[3, 1] == pytest.approx(0.05 / 0.5 * normal(noise_key(0, 3, 1), 2)[0, 0], abs=1e-6)
    assert (read_demonstrations(tmp_path / "d").actions == 1).all()
    assert json.loads((tmp_path / "d/meta/info.json").read_text())["features"]["action"]["names"] == ["pull", "grip"]


def test_jitter_is_that_of_the_scenario_and_the_step_whatever_the_slots(tmp_path: Path):
    first, second, third, other = (
        played_with(tmp_path / str(i), slots, lanes=lanes, workers=workers, jitter=0.05, seed=seed)
        for i, (slots, lanes, workers, seed) in enumerate([(1, 1, 1, 0), (3, 1, 1, 0), (4, 2, 2, 0), (3, 1, 1, 1)])
    )
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)
    assert not np.array_equal(second, other)


def test_jitter_where_nothing_is_a_translation_is_refused(tmp_path: Path):
    with (
        tracking(1, actions=TWO_ARMS) as crew,
        pytest.raises(
            ConfigError,
            match=r"demonstrations.jitter 0.004: no action of simulator 'fake' is a translation in metres; use",
        ),
    ):
        record_demonstrations(crew, DemonstrationConfig(), 0, tmp_path / "d", lambda *_: None)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(("slots", "lanes", "workers"), [(1, 1, 1), (3, 2, 2)])
def test_only_successes_are_kept_in_the_order_of_their_scenarios(tmp_path: Path, slots: int, lanes: int, workers: int):
    """Each with what was seen before the first action and after each but the last."""
    config = DemonstrationConfig(episodes=4, jitter=0)
    with tracking(slots, lanes=lanes, workers=workers, fails=1) as crew:
        rate = record_demonstrations(crew, config, 0, tmp_path / "d", lambda *_: None)
        kept = [scenario.id for scenario in crew.scenarios("train", "train", 0, 4) if scenario.index != 1]
    assert rate == 0.75
    demonstrations = read_demonstrations(tmp_path / "d")
    assert demonstrations.scenarios == kept
    assert demonstrations.state.tolist() == [[index, step] for index in (0, 2, 3) for step in range(3)]
    assert demonstrations.instructions == [f"do {index}" for index in (0, 2, 3) for _ in range(3)]
