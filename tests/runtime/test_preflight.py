"""The pre-flight decides by what it plays, and the run trains, resumes and is recorded with what it decided."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fakes import scenario
from miniature import run_config
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.placement import RuntimeConfig
from treadle.config.preflight import PreflightConfig
from treadle.config.schema import PolicyConfig, SamplingConfig, SimulatorConfig, TrainConfig
from treadle.data.step import EpisodeResult
from treadle.errors import OutputError
from treadle.policies.protocol import Policy
from treadle.reporting.folder import read_run
from treadle.reporting.report import REPORT_FILE
from treadle.runtime import preflight
from treadle.runtime.loop import train
from treadle.runtime.preflight import candidates, decide, fly
from whole_runs import assert_same_run, interrupt_at, press_ctrl_c

CHOOSING = PreflightConfig(episodes=10, choose=True)
CPU = torch.device("cpu")


def config(**fields: Any) -> TrainConfig:
    return TrainConfig(**fields)


@pytest.mark.parametrize(
    ("successes", "chosen"),
    [
        ({0.5: 0.6, 1.0: 0.5, 2.0: 0.3}, 1.0),
        # 70 % of 0.6 is 0.42.
        ({0.5: 0.6, 1.0: 0.42, 2.0: 0.41}, 1.0),
        ({0.5: 0.4, 1.0: 0.7}, 1.0),
    ],
)
def test_the_highest_temperature_that_keeps_its_share(successes: dict[float, float], chosen: float):
    assert decide(config(preflight=CHOOSING), 0.6, successes) == (chosen, None)


def test_where_none_keeps_it_the_lowest_is_taken_and_a_warning_says_what_it_costs():
    chosen, warning = decide(config(preflight=CHOOSING), 0.6, {0.5: 0.3, 1.0: 0.1})
    assert chosen == 0.5
    assert warning is not None
    assert "60.0% of 10 training scenarios succeed without exploration, and 30.0% at temperature 0.5" in warning
    assert "offer lower preflight.temperatures" in warning


def test_the_recipes_own_temperature_is_kept_with_a_warning():
    own = config(preflight=PreflightConfig(episodes=10), policy=PolicyConfig(sampling=SamplingConfig(temperature=1.5)))
    assert decide(own, 0.5, {1.5: 0.4}) == (1.5, None)
    chosen, warning = decide(own, 0.5, {1.5: 0.2})
    assert chosen == 1.5
    assert warning is not None
    assert "20.0% at temperature 1.5, less than 70% of it (preflight.keep)" in warning
    assert "lower policy.sampling.temperature or the noise of policy.options" in warning


def test_a_policy_that_always_fails_decides_nothing():
    chosen, warning = decide(config(preflight=CHOOSING), 0.0, {0.5: 0.0})
    assert chosen == 1.0
    assert warning is not None
    assert "never succeeds without exploration" in warning


def test_what_is_tried():
    class Offers:
        temperatures = (0.5, 0.7, 1.0)

    policy: Any = Offers()
    assert candidates(config(preflight=PreflightConfig(episodes=1)), policy) == (1.0,)
    assert candidates(config(preflight=CHOOSING), policy) == (0.5, 0.7, 1.0)
    named = PreflightConfig(episodes=1, choose=True, temperatures=(2.0, 0.3))
    assert candidates(config(preflight=named), policy) == (0.3, 2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preflight": {"choose": True}}, r"choose true with episodes 0.*preflight\.episodes=128"),
        ({"preflight": {"episodes": 4, "temperatures": (1.0,)}}, r"use preflight\.choose=true"),
        ({"preflight": {"episodes": 4, "choose": True, "temperatures": (0.0,)}}, "greater than 0"),
        ({"preflight": {"episodes": 4}, "runtime": RuntimeConfig(address="auto")}, r"with runtime\.address"),
    ],
)
def test_settings_that_do_not_fit(fields: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**fields)


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[float, int]], list[float]]:
    """Let so many of 10 episodes succeed at each temperature; returns the temperatures as they are played."""

    def set_outcomes(successes: dict[float, int]) -> list[float]:
        asked: list[float] = []

        def play(_: TrainConfig, policy: Policy, crew: Any, temperature: float) -> list[EpisodeResult]:
            assert not policy.training
            asked.append(temperature)
            won = successes[temperature]
            return [EpisodeResult(scenario(i), i < won, i < won, float(i < won), 8) for i in range(10)]

        monkeypatch.setattr(preflight, "_play", play)
        return asked

    return set_outcomes


@pytest.mark.integration
def test_a_run_trains_at_what_was_chosen_and_goes_on_with_it(
    tmp_path: Path,
    checkpoint: Path,
    outcomes: Callable[[dict[float, int]], list[float]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    asked = outcomes({0.0: 10, 0.5: 9, 0.7: 8, 1.0: 6})
    one = train(run_config(tmp_path / "one", checkpoint, preflight=CHOOSING, iterations=2))
    assert asked == [0.0, 0.5, 0.7, 1.0]
    assert "pre-flight: training at temperature 0.7" in capsys.readouterr().out
    kept = json.loads((one / "preflight.json").read_text())
    assert kept["temperature"] == 0.7
    assert [trial["success"] for trial in kept["trials"]] == [0.9, 0.8, 0.6]
    assert kept["still"]["success"] == 1.0
    assert read_run(one).warnings == []
    assert "100.0 % without exploration, 90.0 % at temperature 0.5" in (one / REPORT_FILE).read_text()
    for name in ("base", "final"):
        manifest = json.loads((one / "evaluation" / f"{name}.json").read_text())["manifest"]
        assert manifest["preflight"] == kept
        assert manifest["policy_facts"]["kind"] == "openvla_oft"
        assert manifest["policy_facts"]["chunk"] == 4
    # The same as a run whose recipe says so.
    sampling = SamplingConfig(temperature=0.7)
    named = PolicyConfig(checkpoint=str(checkpoint), frozen_dimensions=(3, 4), sampling=sampling)
    assert_same_run(one, train(run_config(tmp_path / "named", checkpoint, policy=named, iterations=2)))
    # And as one that was stopped, which asks nothing again.
    parts = run_config(tmp_path / "parts", checkpoint, preflight=CHOOSING, iterations=2)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train(parts)
    count = len(asked)
    assert_same_run(one, train(parts))
    assert len(asked) == count
    (parts.output / "run" / "preflight.json").unlink()
    with pytest.raises(OutputError, match=r"preflight\.json: missing; it says at which temperature"):
        train(parts)


@pytest.mark.integration
def test_a_run_whose_temperature_costs_much_says_so(
    tmp_path: Path, checkpoint: Path, outcomes: Callable[[dict[float, int]], list[float]]
):
    asked = outcomes({0.0: 10, 1.0: 3})
    folder = train(run_config(tmp_path, checkpoint, preflight=PreflightConfig(episodes=10), iterations=2))
    assert asked == [0.0, 1.0]
    (said,) = read_run(folder).warnings
    assert "30.0% at temperature 1, less than 70% of it" in said


def test_noise_that_is_too_much_is_not_chosen(tmp_path: Path):
    """Really played, by the packaged flow policy."""
    base = resolve_checkpoint("tabletop-base-flow")
    given = run_config(
        tmp_path,
        base,
        simulator=SimulatorConfig(slots=16, horizon=40, threads=1),
        preflight=PreflightConfig(episodes=24, choose=True, temperatures=(0.25, 40.0)),
    )
    said: list[str] = []
    found = fly(given, base, CPU, said.append)
    assert found["temperature"] == 0.25
    assert found["still"]["episodes"] == 24
    assert found["still"]["success"] > 0.2
    assert found["trials"][1]["success"] < 0.7 * found["still"]["success"]
    assert found["policy_facts"]["drawn"] == "one"
    assert said[-1] == "pre-flight: training at temperature 0.25"
