"""What the report says of roles that wait."""

from pathlib import Path

import pytest

from treadle.reporting.curves import idle_table
from treadle.reporting.folder import RunFolder


def folder(overlap: str | None, *rows: dict[str, float]) -> RunFolder:
    config = {} if overlap is None else {"overlap": overlap}
    return RunFolder(Path(), config, list(rows), None, None, [], None, None, None)


@pytest.mark.parametrize(
    ("overlap", "collect", "train", "said"),
    [
        ("none", 0.5, 0.5, "an iteration would be up to 2.00 times as fast"),
        ("none", 0.2, 0.8, "an iteration would be up to 1.25 times as fast"),
        ("none", 0.04, 0.96, "Nearly all of the time goes to playing: give it more devices"),
        ("async", 0.02, 0.4, "Training waits for playing: give playing more devices"),
        ("async", 0.4, 0.02, "Playing waits for training: give training more devices"),
        ("async", 0.05, 0.1, "the division of devices fits"),
    ],
)
def test_one_line_says_which_role_to_give_more(overlap: str, collect: float, train: float, said: str):
    row = {"idle/collect": collect, "idle/train": train, "idle/simulate": 0.25, "idle/generate": 0.5}
    found = idle_table(folder(overlap, row, row))
    assert "while rollouts were played: simulate 25&nbsp;%, generate 50&nbsp;%." in found
    assert f"playing {100 * collect:.0f}&nbsp;%, training {100 * train:.0f}&nbsp;%. " in found
    assert said in found


def test_older_runs_have_no_such_line():
    assert idle_table(folder(None, {"iteration": 1.0})) == ""
    assert "whole iteration" not in idle_table(folder(None, {"idle/simulate": 0.5, "idle/generate": 0.5}))
