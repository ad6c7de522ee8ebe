"""What a recorder makes of rollouts."""

import io
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from miniature import grouped, make_policy
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.reporting.console import RunConsole
from treadle.reporting.folder import read_run
from treadle.reporting.log import LOG_FILE
from treadle.runtime.player import PlayReport
from treadle.runtime.recorder import SAID_AGAIN, Recorder, summarize


def test_summaries_add_rollouts_up(tmp_path: Path):
    policy = make_policy(tmp_path, chunk=2, action_dim=3)
    rollouts = [grouped(policy, successes, [1, 1]) for successes in ([True, True], [False, True])]
    rollouts[0].seconds, rollouts[1].seconds = {"simulate": 1.0}, {"simulate": 2.0, "generate": 4.0}
    summary = summarize(PlayReport.of(rollouts, []))
    assert summary["rollout/success"] == 0.75
    assert summary["rollout/control_steps"] == 3 + 3 + 6 + 3
    assert (summary["time/simulate"], summary["time/generate"], summary["rollout/rounds"]) == (3, 4, 2)


def test_a_warning_is_said_once_and_again_after_a_while(tmp_path: Path):
    """On the console and in the log; a second sign has a line of its own, and the numbers of a sign may change."""
    shown = io.StringIO()
    console = RunConsole("run", 200, Console(file=shown, width=200))

    def alarms(row: dict[str, float]) -> dict[str, str]:
        number = int(row["iteration"])
        return {"a": f"<a> {number}", **({"b": "b"} if number == 3 else {})} if number != 1 else {}

    with Recorder(TrainConfig(iterations=200), tmp_path, alarms, console) as recorder:
        for iteration in range(1, SAID_AGAIN + 10):
            recorder.write(iteration, PlayReport(1, [], 4, {"collect": 1.0, "simulate": 0.5, "generate": 0.5}, []), {})
    again = SAID_AGAIN + 2
    wanted = ["iteration 2: <a> 2", "iteration 3: b", f"iteration {again}: <a> {again}"]
    assert [line for line in shown.getvalue().splitlines() if line.startswith("warning")] == [
        f"warning: {line}" for line in wanted
    ]
    assert [line.partition(" WARNING ")[2] for line in (tmp_path / LOG_FILE).read_text().splitlines()] == wanted
    assert read_run(tmp_path).warnings == wanted


def test_summarize_averages_over_episodes():
    what = Scenario("fake", "train", "task", "train", 0, "do")
    episodes = [EpisodeResult(what, True, False, 2.0, 3), EpisodeResult(what, False, False, 1.0, 6)]
    x = torch.zeros(1, 1)
    rollout = Rollout(
        *(x, x, x, x, x, x, x, x, x, torch.tensor([[[True, True, False]]]), x, x[0], x, x, x),  # type: ignore[arg-type]
        scenarios=np.full((1, 1), what),
        episodes=episodes,
        seconds={"simulate": 0.5},
    )
    assert summarize(PlayReport.of([rollout], [])) == {
        "rollout/episodes": 2,
        "rollout/control_steps": 2,
        "time/simulate": 0.5,
        "rollout/success": 0.5,
        "rollout/return": 1.5,
        "rollout/length": 4.5,
    }
    rollout.episodes = []
    assert "rollout/success" not in summarize(PlayReport.of([rollout], []))
