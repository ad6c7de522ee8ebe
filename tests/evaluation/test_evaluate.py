"""Evaluation: each scenario once, the same however it is played."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fakes import FakePolicy, FakeSimulator, Script, scenario
from miniature import SIMULATOR, make_policy
from treadle.config.schema import EvaluationConfig, LoadingConfig, SamplingConfig
from treadle.data.step import EpisodeResult
from treadle.errors import CheckpointError, ConfigError
from treadle.evaluation.evaluate import Ablation, evaluate_checkpoint, evaluate_policy, film, play
from treadle.policies.protocol import Sampling

SCRIPTS = {i: Script(ends=1 + 7 * i % 11, succeeds=(3, 5)) for i in range(0, 20, 2)}
GREEDY, RANDOM = Sampling(temperature=0), Sampling()


def played(slots: int, count: int, sampling: Sampling = RANDOM, chunk: int = 3) -> list[EpisodeResult]:
    simulator = FakeSimulator(slots, SCRIPTS)
    return play(FakePolicy(chunk), simulator, simulator.scenarios("train", "evaluation")[:count], 10, sampling)  # type: ignore[arg-type]


def test_each_scenario_is_played_once_and_results_are_in_their_order():
    results = played(3, 20, GREEDY)
    assert [result.scenario.index for result in results] == list(range(20))
    # Scenario 2 ends at step 4 with 1 + 2 + 3 + 4, after its goal held at step 3; scenario 1 never ends.
    assert results[2] == EpisodeResult(scenario(2, split="evaluation"), True, False, 10.0, 4)
    assert results[1] == EpisodeResult(scenario(1, split="evaluation"), False, False, 55.0, 10)


@pytest.mark.parametrize("slots", [1, 2, 5, 30])
def test_results_do_not_depend_on_slots(slots):
    wanted = played(3, 12)
    assert played(slots, 12) == wanted
    returns = {result.episode_return % 1 for result in wanted}
    assert len(returns) == 12, "each scenario has noise of its own"


def test_a_greedy_policy_gets_no_noise():
    assert all(result.episode_return == int(result.episode_return) for result in played(3, 12, GREEDY))


def test_noise_changes_from_decision_to_decision():
    policy = FakePolicy(chunk=1, action_dim=1)
    seen = []
    act = policy.act
    policy.act = lambda inputs, sampling, noise=None: (seen.append(float(noise)), act(inputs, sampling, noise))[1]  # type: ignore[method-assign,arg-type]
    play(policy, FakeSimulator(1), [scenario(1)], 10, RANDOM)  # type: ignore[arg-type]
    assert len(set(seen)) == 10


def test_suites_and_their_settings():
    config = EvaluationConfig(suites=("train", "odd"), episodes=7)
    calls: list[tuple[str, int, int]] = []
    report = evaluate_policy(
        FakePolicy(),  # type: ignore[arg-type]
        FakeSimulator(4, SCRIPTS),
        10,
        config,
        progress=lambda suite, done, total: calls.append((suite, done, total)),
    )
    suites = report["suites"]
    assert suites.keys() == {"train", "odd"}
    assert suites["train"]["episodes"] == suites["odd"]["episodes"] == 7
    # Scenarios 0, 2, 4, 6 end at steps 1, 4, 7, 10: the goal, at steps 3 and 5, held in three of seven.
    assert suites["train"]["success"] == pytest.approx(3 / 7)
    assert suites["train"]["success_at_end"] == 0
    assert suites["train"]["settings"] == {}
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
    report = evaluate_policy(
        FakePolicy(),  # type: ignore[arg-type]
        FakeSimulator(4),
        10,
        EvaluationConfig(suites=("odd",), episodes=500),
        progress=lambda *call: calls.append(call),
    )
    assert report["suites"]["odd"]["episodes"] == 10
    assert calls[-1] == ("odd", 10, 10)


def test_blank_frames_are_grey_and_the_rest_is_as_it_was():
    plain, blank = FakePolicy(), FakePolicy()
    scenarios = [scenario(i) for i in range(3)]
    left = play(plain, FakeSimulator(2), scenarios, 4, GREEDY)  # type: ignore[arg-type]
    right = play(blank, FakeSimulator(2), scenarios, 4, GREEDY, ablation=Ablation(frames="blank"))  # type: ignore[arg-type]
    assert {int(x) for frames in blank.frames for x in frames.unique()} == {127}
    assert {int(x) for frames in plain.frames for x in frames.unique()} == {0, 1, 2}
    assert blank.instructions == plain.instructions
    assert left == right


def test_shuffled_instructions_fit_the_scene_and_stay_for_the_episode():
    policy = FakePolicy(chunk=2)
    simulator = FakeSimulator(1)
    scenarios = [scenario(i) for i in range(30)]
    play(policy, simulator, scenarios, 4, GREEDY, ablation=Ablation(instructions="shuffled"))  # type: ignore[arg-type]
    asked = [texts[0] for texts in policy.instructions]
    assert asked[::2] == asked[1::2], "both decisions of an episode"
    assert all(text in simulator.instructions(what) for text, what in zip(asked[::2], scenarios, strict=True))
    own = sum(text == what.instruction for text, what in zip(asked[::2], scenarios, strict=True))
    assert 0 < own < 15, "its own is one of six"
    again = FakePolicy(chunk=2)
    play(again, FakeSimulator(7), scenarios, 4, GREEDY, ablation=Ablation(instructions="shuffled"))  # type: ignore[arg-type]
    assert sorted(text for texts in again.instructions for text in texts) == sorted(asked)


def test_films_have_a_frame_before_the_first_action_and_one_after_each():
    scenarios = [scenario(i) for i in (0, 2, 1)]
    films = film(FakePolicy(), FakeSimulator(3, SCRIPTS), scenarios, 10, GREEDY, 8)  # type: ignore[arg-type]
    assert [result.scenario.index for result, _ in films] == [0, 2, 1]
    assert [result.length for result, _ in films] == [1, 4, 10]
    for result, frames in films:
        assert frames.shape == (result.length + 1, 8, 8, 3)
        assert frames[:, 0, 0, 0].tolist() == list(range(result.length + 1))


@pytest.mark.integration
def test_a_checkpoint_is_evaluated_with_its_manifest(tmp_path: Path):
    checkpoint = tmp_path / "tiny"
    make_policy(tmp_path / "tokenizer").save(checkpoint)
    evaluation = EvaluationConfig(suites=("train", "vision"), episodes=5, slots=2, sampling=SamplingConfig())
    loading = LoadingConfig(options={"center_crop": 0.9})
    report = evaluate_checkpoint(checkpoint, loading, SIMULATOR, evaluation, "cpu", instructions="shuffled")
    manifest = report["manifest"]
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["weights_sha256"]["model.safetensors"] == digest
    assert manifest["checkpoint"] == "tiny"
    assert manifest["split"] == "evaluation"
    assert manifest["ablation"] == {"instructions": "shuffled", "frames": "own"}
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
