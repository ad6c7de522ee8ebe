"""What a recorder makes of rollouts."""

from pathlib import Path

from miniature import grouped, make_policy
from treadle.runtime.player import PlayReport
from treadle.runtime.recorder import summarize


def test_summaries_add_rollouts_up(tmp_path: Path):
    policy = make_policy(tmp_path, chunk=2, action_dim=3)
    rollouts = [grouped(policy, successes, [1, 1]) for successes in ([True, True], [False, True])]
    rollouts[0].seconds, rollouts[1].seconds = {"simulate": 1.0}, {"simulate": 2.0, "generate": 4.0}
    summary = summarize(PlayReport.of(rollouts, []))
    assert summary["rollout/success"] == 0.75
    assert summary["rollout/control_steps"] == 3 + 3 + 6 + 3
    assert (summary["time/simulate"], summary["time/generate"], summary["rollout/rounds"]) == (3, 4, 2)
