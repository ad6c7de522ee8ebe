"""Evaluation: each scenario once, the same however it is played."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakePolicy, FakeSimulator, Script, scenario
from miniature import SIMULATOR, make_policy
from treadle.config.loading import read_config
from treadle.config.schema import EvaluationConfig, LoadingConfig, SamplingConfig, TrainConfig
from treadle.data.step import EpisodeResult
from treadle.errors import CheckpointError, ConfigError, SimulatorError
from treadle.evaluation.evaluate import Ablation, evaluate_checkpoint, evaluate_policy, play_suite
from treadle.evaluation.films import film_scenarios
from treadle.evaluation.play import play
from treadle.policies.protocol import Sampling
from treadle.rollout.actor import Actor
from treadle.rollout.sources import ScenarioList
from treadle.simulators.factory import SimulatorFactory
from treadle.workers.crew import Crew, CrewPlan
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session

SCRIPTS = {i: Script(ends=1 + 7 * i % 11, succeeds=(3, 5)) for i in range(0, 20, 2)}
GREEDY, RANDOM = Sampling(temperature=0), Sampling()


def crew_of(slots: int, scripts: dict[int, Script] | None = None, **plan: Any) -> Crew:
    return Crew(CrewPlan(SimulatorFactory("fake_simulator:FakeSimulator", {"scripts": scripts}), slots, **plan))


def played(slots: int, count: int, sampling: Sampling = RANDOM, chunk: int = 3, **plan: Any) -> list[EpisodeResult]:
    policy: Any = FakePolicy(chunk)
    with crew_of(slots, SCRIPTS, **plan) as crew:
        source = ScenarioList(("train", "evaluation"), range(count), crew.rows)
        results = play(Lanes(crew, Session(10), source, chunk), Actor(policy, sampling)).results
    return sorted(results.values(), key=lambda result: result.scenario.index)


def test_each_scenario_is_played_once():
    results = played(3, 20, GREEDY)
    assert [result.scenario.index for result in results] == list(range(20))
    # Scenario 2 ends at step 4 with 1 + 2 + 3 + 4, after its goal held at step 3; scenario 1 never ends.
    assert results[2] == EpisodeResult(scenario(2, split="evaluation"), True, False, 10.0, 4)
    assert results[1] == EpisodeResult(scenario(1, split="evaluation"), False, False, 55.0, 10)


@pytest.mark.parametrize(("slots", "lanes", "workers"), [(1, 1, 1), (2, 2, 1), (5, 2, 2), (30, 3, 4)])
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_results_do_not_depend_on_slots_lanes_and_workers(slots, lanes, workers, kind):
    wanted = played(3, 12)
    assert played(slots, 12, lanes=lanes, workers=workers, kind=kind) == wanted
    returns = {result.episode_return % 1 for result in wanted}
    assert len(returns) == 12, "each scenario has noise of its own"


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_number_of_slots_lanes_and_workers_gives_the_same_episodes(data):
    """Sampled, so that noise which depended on the batch would show."""
    lanes = data.draw(st.integers(1, 4), label="lanes")
    workers, slots = data.draw(st.integers(1, 4), label="workers"), data.draw(st.integers(lanes, 24), label="slots")
    chunk = data.draw(st.integers(1, 4), label="chunk")
    alone = played(1, 9, chunk=chunk)
    assert played(slots, 9, chunk=chunk, lanes=lanes, workers=workers, kind="threads") == alone


def test_a_greedy_policy_draws_no_actions():
    assert all(result.episode_return == int(result.episode_return) for result in played(3, 12, GREEDY))


@pytest.mark.parametrize("sampling", [RANDOM, GREEDY])
def test_keys_change_from_decision_to_decision(sampling):
    policy: Any = FakePolicy(chunk=1, action_dim=2)
    seen = []
    act = policy.act
    policy.act = lambda inputs, sampling, keys=None: (seen.append(int(keys[0])), act(inputs, sampling, keys))[1]
    with crew_of(1) as crew:
        play(Lanes(crew, Session(10), ScenarioList(("train", "train"), [1], crew.rows), 1), Actor(policy, sampling))
    assert len(set(seen)) == 10


def suite_results(
    policy: Any, crew: Crew, horizon: int, config: EvaluationConfig, **fields: Any
) -> dict[int, EpisodeResult]:
    """What `play_suite` reports of `train`, by number."""
    found: dict[int, EpisodeResult] = {}
    play_suite(policy, crew, horizon, config, "train", lambda ended, total: found.update(ended), **fields)
    return found


def test_suites_and_their_settings():
    config = EvaluationConfig(suites=("train", "odd"), episodes=7)
    calls: list[tuple[str, int, int]] = []
    policy: Any = FakePolicy()
    with crew_of(4, SCRIPTS) as crew:
        report = evaluate_policy(
            policy, crew, 10, config, progress=lambda suite, done, total: calls.append((suite, done, total))
        )
    suites = report["suites"]
    assert suites.keys() == {"train", "odd"}
    assert suites["train"]["episodes"] == suites["odd"]["episodes"] == 7
    # Scenarios 0, 2, 4, 6 end at steps 1, 4, 7, 10: the goal, at steps 3 and 5, held in three of seven.
    assert suites["train"]["success"] == pytest.approx(3 / 7)
    assert suites["train"]["success_at_end"] == 0
    assert suites["train"]["settings"] == suites["train"]["tasks"] == {}
    assert {name: rate["episodes"] for name, rate in suites["odd"]["settings"].items()} == {"odd/a": 4, "odd/b": 3}
    # a plays 0 to 3, b 0 to 2, and of them 2 succeeds.
    assert {name: rate["success"] for name, rate in suites["odd"]["settings"].items()} == pytest.approx(
        {"odd/a": 1 / 4, "odd/b": 1 / 3}
    )
    assert Counter(suite for suite, *_ in calls).keys() == {"train", "odd"}
    assert calls[-1] == ("odd", 7, 7)
    assert all(done <= total == 7 for _, done, total in calls)


def test_a_short_suite_is_not_replayed():
    calls: list[tuple[str, int, int]] = []
    policy: Any = FakePolicy()
    with crew_of(4) as crew:
        config = EvaluationConfig(suites=("odd",), episodes=500)
        report = evaluate_policy(policy, crew, 10, config, progress=lambda *call: calls.append(call))
    assert report["suites"]["odd"]["episodes"] == 10
    assert calls[-1] == ("odd", 10, 10)


def test_a_scenario_that_is_listed_twice_is_refused(monkeypatch: pytest.MonkeyPatch):
    """It would count double: workers with one seed, or a list with an entry too many."""
    policy: Any = FakePolicy()
    with crew_of(4) as crew:
        whole = crew.scenarios("train", "evaluation", 0, 6)
        monkeypatch.setattr(crew, "scenarios", lambda *_: [*whole, whole[2]])
        said = "fake: suite 'train' lists the evaluation scenario fake/train/evaluation/000002 twice, at 2 and 6"
        with pytest.raises(SimulatorError, match=said):
            evaluate_policy(policy, crew, 10, EvaluationConfig(suites=("train",), episodes=7))


def test_no_more_slots_play_than_are_allowed():
    policy: Any = FakePolicy()
    with crew_of(6) as crew:
        evaluate_policy(policy, crew, 10, EvaluationConfig(suites=("train",), episodes=9, slots=2))
    assert max(len(frames) for frames in policy.frames) == 2


def test_horizons_of_suites():
    policy: Any = FakePolicy()
    config = EvaluationConfig(suites=("train", "odd"), episodes=2, horizons={"odd": 3})
    with crew_of(2) as crew:
        suites = evaluate_policy(policy, crew, 5, config)["suites"]
    assert (suites["train"]["mean_length"], suites["odd"]["mean_length"]) == (5, 3)


def test_repeats_have_noise_of_their_own_and_the_first_is_as_without():
    policy: Any = FakePolicy()
    config = EvaluationConfig(suites=("train",), episodes=4, sampling=SamplingConfig(), repeats=3)
    single = config.model_copy(update={"repeats": 1})
    with crew_of(3) as crew:
        results, first = (suite_results(policy, crew, 10, some) for some in (config, single))
        shares = [suite_results(policy, crew, 10, config, share=(i, 2)) for i in range(2)]
        rest = suite_results(policy, crew, 10, config, played={0, 1, 5, 11}, share=(1, 2))
    assert [results[number].scenario.index for number in range(12)] == [0, 1, 2, 3] * 3
    assert {number: results[number] for number in range(4)} == first
    assert len({result.episode_return for result in results.values()}) == 12
    assert [sorted(share) for share in shares] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    assert shares[0] | shares[1] == results
    assert rest == {number: results[number] for number in (3, 6, 8, 10)}, "of 2 3 4 6 7 8 9 10 every second"


def test_repeats_of_a_greedy_policy_are_refused():
    with pytest.raises(ConfigError, match=r"evaluation.repeats 3 with evaluation.sampling.temperature 0"):
        read_config(TrainConfig, None, ["evaluation.repeats=3"])


def test_the_rule_of_success():
    policy: Any = FakePolicy()
    scripts = {0: Script(ends=5, succeeds=(3, 5)), 1: Script(ends=6, succeeds=(3,))}
    config = EvaluationConfig(suites=("train",), episodes=2)
    with crew_of(2, scripts) as crew:
        once = evaluate_policy(policy, crew, 10, config)["suites"]["train"]
        end = evaluate_policy(policy, crew, 10, config.model_copy(update={"success": "end"}))["suites"]["train"]
    assert (once["success"], end["success"]) == (1.0, 0.5)
    assert {k: v for k, v in once.items() if k not in ("success", "ci95")} == {
        k: v for k, v in end.items() if k not in ("success", "ci95")
    }


def ablated(ablation: Ablation, slots: int, policy: FakePolicy) -> dict[str, Any]:
    loaded: Any = policy
    config = EvaluationConfig(suites=("train",), episodes=20)
    with crew_of(slots) as crew:
        return evaluate_policy(loaded, crew, 4, config, ablation=ablation)


def test_blank_frames_are_grey_and_the_rest_is_as_it_was():
    plain, blank = FakePolicy(), FakePolicy()
    left, right = ablated(Ablation(), 2, plain), ablated(Ablation(frames="blank"), 2, blank)
    assert {int(x) for frames in blank.frames for x in frames.unique()} == {127}
    assert {int(x) for frames in plain.frames for x in frames.unique()} == set(range(20))
    assert blank.instructions == plain.instructions
    assert left == right


def test_shuffled_instructions_fit_the_scene_and_stay_for_the_episode():
    policy, again = FakePolicy(chunk=2), FakePolicy(chunk=2)
    ablated(Ablation(instructions="shuffled"), 1, policy)
    asked = [texts[0] for texts in policy.instructions]
    assert asked[::2] == asked[1::2], "both decisions of an episode"
    scenarios = [scenario(i, split="evaluation") for i in range(20)]
    fitting = FakeSimulator(1).instructions
    assert all(text in fitting(what) for text, what in zip(asked[::2], scenarios, strict=True))
    own = sum(text == what.instruction for text, what in zip(asked[::2], scenarios, strict=True))
    assert 0 < own < 10, "its own is one of six"
    ablated(Ablation(instructions="shuffled"), 7, again)
    assert sorted(text for texts in again.instructions for text in texts) == sorted(asked)


@pytest.mark.parametrize(("lanes", "workers", "kind"), [(1, 1, "threads"), (2, 3, "processes")])
def test_the_policy_is_asked_what_scenes_word_and_results_keep_it(lanes, workers, kind):
    policy: Any = FakePolicy()
    factory = SimulatorFactory("fake_simulator:WordingSimulator", {})
    with Crew(CrewPlan(factory, 3, lanes=lanes, workers=workers, kind=kind)) as crew:
        found = suite_results(policy, crew, 4, EvaluationConfig(episodes=7))
    results = [found[number] for number in range(7)]
    words = [f"do {i} with the {('left', 'right')[i % 2]} arm" for i in range(7)]
    assert [result.scenario.instruction for result in results] == words
    assert {text for texts in policy.instructions for text in texts} == set(words)


def test_films_have_a_frame_before_the_first_action_and_one_after_each():
    policy: Any = FakePolicy()
    with crew_of(2, SCRIPTS) as crew:
        scenarios = crew.scenarios("train", "evaluation", 0, 3)
        films = film_scenarios(policy, crew, "train", scenarios, range(3), 10, SamplingConfig(temperature=0), 8)
    assert [result.scenario.index for result, _ in films] == [0, 1, 2]
    assert [result.length for result, _ in films] == [1, 10, 4]
    for result, frames in films:
        assert frames.shape == (result.length + 1, 8, 8, 3)
        assert frames[:, 0, 0, 0].tolist() == list(range(result.length + 1))


@pytest.mark.integration
def test_a_checkpoint_is_evaluated_with_its_manifest(tmp_path: Path):
    checkpoint = tmp_path / "tiny"
    make_policy(tmp_path / "tokenizer").save(checkpoint)
    evaluation = EvaluationConfig(suites=("train", "vision"), episodes=5, slots=2, sampling=SamplingConfig())
    loading = LoadingConfig(options={"center_crop": 0.9})
    report = evaluate_checkpoint(
        checkpoint, loading, SIMULATOR, evaluation, "cpu", ablation=Ablation(instructions="shuffled")
    )
    manifest = report["manifest"]
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["weights_sha256"]["model.safetensors"] == digest
    assert manifest["checkpoint"] == "tiny"
    assert manifest["split"] == "evaluation"
    assert manifest["ablation"] == {"instructions": "shuffled", "frames": "own"}
    facts = manifest["policy_facts"]
    assert (facts["kind"], facts["chunk"], facts["center_crop"], facts["statistics"]) == (
        "openvla_oft", 4, 0.9, "tabletop",
    )  # fmt: skip
    assert manifest["horizons"] == {"train": 8, "vision": 8}
    assert manifest["simulator_versions"]["mujoco"] == manifest["versions"]["mujoco"]
    assert manifest["renderer"] is None, "the tabletop casts rays itself"
    assert report["complete"]
    assert report["wanted"] == 10
    assert LoadingConfig.model_validate(manifest["policy"]) == loading
    assert SIMULATOR.model_validate(manifest["simulator"]) == SIMULATOR
    assert EvaluationConfig.model_validate_json(json.dumps(manifest["evaluation"])) == evaluation
    assert {"python", "torch", "mujoco"} <= manifest["versions"].keys()
    assert report["suites"]["vision"]["episodes"] == 5
    assert sum(rate["episodes"] for rate in report["suites"]["vision"]["settings"].values()) == 5
    assert all(np.isfinite(suite["mean_return"]) for suite in report["suites"].values())
    with pytest.raises(ConfigError, match="no setting 'centre_crop' of openvla_oft; there are: chunk, "):
        evaluate_checkpoint(checkpoint, LoadingConfig(options={"centre_crop": 0.9}), SIMULATOR, evaluation, "cpu")
    with pytest.raises(ConfigError, match="tabletop has no suite 'nowhere'"):
        evaluate_checkpoint(
            checkpoint, loading, SIMULATOR, evaluation.model_copy(update={"suites": ("nowhere",)}), "cpu"
        )
    with pytest.raises(CheckpointError, match="no such directory"):
        evaluate_checkpoint(tmp_path / "absent", loading, SIMULATOR, evaluation, "cpu")
