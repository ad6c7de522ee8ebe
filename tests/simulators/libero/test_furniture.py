# ruff: noqa: NPY002
"""Furniture of a stand-in for LIBERO's environment, with places that can be drawn by hand."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from treadle.errors import ConfigError
from treadle.simulators.libero.furniture import draw, seeds_of
from treadle.simulators.libero.suites import Suites


class RandomizationError(Exception):
    pass


class Environment:
    """One cabinet, which the description puts at x = 7; a drawer whose joint is drawn first."""

    def __init__(self, fixtures=1, crowded=()):
        body = {"name": "cabinet_main", "pos": "7 0 0"}
        self.model = SimpleNamespace(worldbody=SimpleNamespace(find=lambda path: body))
        inner = SimpleNamespace(body_pos=np.zeros((2, 3)), body_quat=np.tile([1.0, 0, 0, 0], (2, 1)))
        inner.body_name2id = lambda name: {"cabinet_main": 1}[name]
        inner._model = inner
        self.sim = SimpleNamespace(model=inner, reset=lambda: None)
        self.fixtures_dict = {"cabinet": SimpleNamespace(root_body="cabinet_main")} if fixtures else {}
        self.object_property_initializers = ["drawer"]
        self.crowded, self.tries, self.seen = crowded, 0, []

    def _reset_internal(self):
        self.tries += 1
        self.seen.append(self.sim.model.body_pos[1, 0])
        for _ in self.object_property_initializers:
            np.random.uniform()
        if self.tries in self.crowded:
            raise RandomizationError
        self.sim.model.body_pos[1, 0] = np.random.uniform()


@pytest.fixture(autouse=True)
def robosuite(monkeypatch):
    for name in ("robosuite", "robosuite.utils", "robosuite.utils.errors"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["robosuite.utils.errors"].RandomizationError = RandomizationError


def numbers(seed):
    return np.random.RandomState(seed).uniform(size=20)


def test_each_further_reset_draws_joints_once_more():
    """The constructor has made one sampler of the drawer, so the first reset has two, the second three."""
    environment = Environment()
    drawn = draw(environment, [(0, 3)])
    # Two joints and the cabinet, three and the cabinet, four and the cabinet.
    np.testing.assert_array_equal(drawn[:, 0, 0], numbers(0)[[2, 6, 11]])
    np.testing.assert_array_equal(drawn[:, 0, 3:], [[1, 0, 0, 0]] * 3)
    assert environment.seen == [7, 7, 7], "where the description has it, before each draw"
    assert environment.object_property_initializers == ["drawer"]


def test_each_seed_begins_anew():
    drawn = draw(Environment(), [(3, 1), (4, 1)])
    np.testing.assert_array_equal(drawn[:, 0, 0], [numbers(3)[2], numbers(4)[2]])


def test_what_finds_no_room_is_drawn_again_in_a_scene_that_is_built_again():
    drawn = draw(Environment(crowded=[1]), [(0, 1)])
    # Two joints, then no room; three joints and the cabinet.
    np.testing.assert_array_equal(drawn[:, 0, 0], numbers(0)[[5]])


def test_the_global_generator_is_left_as_it_was():
    np.random.seed(5)
    draw(Environment(), [(0, 1)])
    assert np.random.uniform() == numbers(5)[0]


def test_a_scene_without_furniture_draws_nothing():
    assert draw(Environment(fixtures=0), [(0, 50)]).shape == (1, 0, 7)


def test_protocols_seed_by_task_or_by_scenario(distribution):
    assert seeds_of("fresh", 3, 10) == [(0, 1)]
    assert seeds_of("per-reset", 3, 10) == [(0, 50)]
    indexed = seeds_of("indexed", 3, 10)
    assert (indexed[0], indexed[1], len(indexed)) == ((3, 1), (13, 1), 50)
    suites = Suites(distribution, "object", (), "published")
    scenarios = suites.scenarios("90", "evaluation")
    assert suites.place_of(suites.task(scenarios[93])) == (3, 90)
    assert suites.place_of(suites.task(suites.scenarios("execution/object-swap", "train")[4])) == (4, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"furniture": "random"}, "options.furniture: found 'random'; choose from fresh, per-reset, indexed"),
        ({"settle_gripper": "close"}, "options.settle_gripper: found 'close'; choose from open, still"),
        ({"settle_steps": -1}, "options.settle_steps: found -1; it is 0 or more"),
    ],
)
def test_choices_are_checked(options, message):
    from treadle.simulators.libero import Libero

    with pytest.raises(ConfigError, match=message):
        Libero(slots=1, **options)
