from dataclasses import replace

import pytest

from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.libero.suites import Suites, read_states, scene_of, state_of


def suites(distribution, suite="object", tasks=(), states="disjoint"):
    return Suites(distribution, suite, tasks, states)


def test_a_part_of_an_enumeration_has_every_task(distribution):
    scenarios = suites(distribution).scenarios("train", "evaluation")
    assert len(scenarios) == 10 * 10
    assert {scenario.task for scenario in scenarios[:10]} == set(distribution.tasks["libero_object"])
    assert {state_of(scenario) for scenario in scenarios[:10]} == {40}
    assert scenarios[-1] == scenarios[99]
    assert state_of(scenarios[99]) == 49
    with pytest.raises(IndexError):
        scenarios[100]


def test_splits_are_disjoint_or_published(distribution):
    for states, shared in (("disjoint", 0), ("published", 500)):
        train, evaluation = (
            {(s.task, state_of(s)) for s in suites(distribution, states=states).scenarios("train", split)}
            for split in ("train", "evaluation")
        )
        assert len(train & evaluation) == shared
        assert len(train | evaluation) == 500


def test_indices_tell_all_episodes_of_the_unified_suite_apart(distribution):
    scenarios = suites(distribution, "130").scenarios("train", "train")
    assert len(scenarios) == 130 * 40
    assert len({scenario.index for scenario in scenarios}) == len(scenarios)
    assert {scenario.suite for scenario in scenarios} == {"spatial", "object", "goal", "10", "90"}


def test_a_scenario_leads_back_to_its_task(distribution):
    every = suites(distribution)
    for suite in every.names():
        for scenario in every.scenarios(suite, "evaluation")[::7]:
            task = every.task(scenario)
            assert (task.suite, task.name, task.instruction) == (scenario.suite, scenario.task, scenario.instruction)


def test_instructions_are_names_and_variants_have_their_own_wording(distribution):
    every = suites(distribution)
    assert every.scenarios("10", "train")[0].instruction == "open the drawer"
    assert every.scenarios("object", "train")[3].instruction == "lift thing 3 of object"
    assert every.scenarios("execution/object-swap", "train")[3].instruction == "lift thing 3 of object"
    assert every.scenarios("semantic/object-language", "train")[3].instruction == "grab thing 3"


def test_axes_vary_the_training_suite_in_turn(distribution):
    every = suites(distribution)
    assert [s.suite for s in every.scenarios("semantic", "evaluation")[:4]] == [
        "semantic/object-language",
        "semantic/object-task",
    ] * 2
    assert {s.suite for s in suites(distribution, "130").scenarios("vision", "evaluation")} == {
        "vision/object-object",
        "vision/spatial-object",
    }
    assert "vision" not in suites(distribution, "90").names()


def test_tasks_are_kept_in_training_and_its_variants(distribution):
    some = suites(distribution, tasks=(2, 5))
    assert {s.task for s in some.scenarios("train", "train")} == {"lift_thing_2_of_object", "lift_thing_5_of_object"}
    assert {s.task for s in some.scenarios("vision", "train")} == {"lift_thing_2_of_object", "lift_thing_5_of_object"}
    assert len({s.task for s in some.scenarios("object", "train")}) == 10
    same = {s.index: s for s in suites(distribution).scenarios("train", "train")}
    assert all(same[s.index] == s for s in some.scenarios("train", "train"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "objects"}, "options.suite: found 'objects'; choose from spatial, object, goal, 10, 90, 130"),
        ({"tasks": (10,)}, "found 10; suite 'object' has tasks 0 to 9"),
        ({"suite": "130", "tasks": (1,)}, "for a suite of its own"),
        ({"states": "all"}, "choose from disjoint, published"),
    ],
)
def test_wrong_options_are_named(distribution, options, message):
    with pytest.raises(ConfigError, match=message):
        suites(distribution, **options)


def test_unknown_suites_and_foreign_scenarios_are_refused(distribution):
    every = suites(distribution)
    with pytest.raises(ConfigError, match=r"libero has no suite 'vision/goal-object'.*; choose from train, spatial"):
        every.scenarios("vision/goal-object", "train")
    scenario = every.scenarios("train", "train")[0]
    for foreign in (
        replace(scenario, simulator="tabletop"),
        replace(scenario, suite="train"),
        replace(scenario, index=7),
    ):
        with pytest.raises(SimulatorError, match="libero cannot play scenario"):
            every.task(foreign)


def test_alternatives_are_about_what_is_in_the_scene(distribution):
    every = suites(distribution)
    scenario = every.scenarios("object", "train")[1]
    assert every.alternatives(scenario) == [f"lift thing {i} of object" for i in (1, 4, 7)]


def test_a_description_names_its_scene(distribution):
    path = distribution.descriptions / "libero_object" / "lift_thing_4_of_object.bddl"
    assert scene_of(path) == ({"main_table", "soup_1", "soup_2", "thing1_1"}, {"thing1_1"})


def test_missing_states_are_named(distribution):
    every = suites(distribution)
    first, second = every.scenarios("train", "train")[:2]
    assert read_states(every.task(first)).shape == (50, 5)
    with pytest.raises(SimulatorError, match=r"lift_thing_1_of_object\.pruned_init\.npz"):
        read_states(every.task(second))
