"""Runs and evaluations beside each other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fakes import scenario
from treadle.data.step import EpisodeResult
from treadle.errors import ConfigError, OutputError
from treadle.evaluation.compare import (
    comparison_data,
    comparison_grids,
    configuration_grid,
    paired_grid,
    read_items,
    success_grid,
    write_comparison,
)
from treadle.evaluation.curves import comparison_curves, group_runs
from treadle.evaluation.episodes import EPISODES_FILE, write_episodes
from treadle.evaluation.evaluate import summarize_suite
from treadle.files import to_json, write_atomically
from treadle.reporting.folder import read_run

TRAIN = {"iterations": 3, "simulator": {"name": "fake", "slots": 4}, "policy": {"checkpoint": "p"}}


def results(*successes: bool) -> list[EpisodeResult]:
    return [EpisodeResult(scenario(i), good, False, 0.0, 1) for i, good in enumerate(successes)]


def report(of: list[EpisodeResult], **settings: Any) -> dict[str, Any]:
    manifest = {"evaluation": {"success": "once", "slots": 3}, "weights_sha256": {"m": "1" * 64}, **settings}
    return {"suites": {"train": summarize_suite("train", of)}, "complete": True, "manifest": manifest}


def evaluation(folder: Path, *successes: bool, **settings: Any) -> Path:
    of = results(*successes)
    write_atomically(folder / "result.json", to_json(report(of, **settings)))
    write_episodes(folder / EPISODES_FILE, {"train": dict(enumerate(of))})
    return folder


def run(folder: Path, shares: list[float], base: list[bool], final: list[bool] | None, **settings: Any) -> Path:
    write_atomically(folder / "config.json", to_json({"name": folder.name, **TRAIN, **settings}))
    rows = [
        {"iteration": i, "rollout/success": share, "rollout/return": 1.0, "rollout/length": 5.0, "rollout/episodes": 10}
        for i, share in enumerate(shares, start=1)
    ]
    write_atomically(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for name, of in (("base", base), ("final", final)):
        if of is not None:
            write_atomically(folder / "evaluation" / f"{name}.json", to_json(report(results(*of))))
            write_episodes(folder / "evaluation" / f"{name}.{EPISODES_FILE}", {"train": dict(enumerate(results(*of)))})
    return folder


def test_evaluations_are_compared_with_the_first(tmp_path):
    a = evaluation(tmp_path / "a", True, False, False, False, False, False)
    b = evaluation(tmp_path / "b", True, True, True, True, True, True, horizons={"train": 9})
    items = read_items([a, b])
    assert [row.cells for row in success_grid(items).rows] == [
        ["train", "16.7 %", "100.0 %"],
        ["95 % interval", "3.0 to 56.4, n 6", "61.0 to 100.0, n 6"],
    ]
    (row,) = paired_grid(items).rows
    # Five scenarios where b alone succeeds: 2 / 2^5.
    assert (row.cells[0], row.cells[1], row.cells[2], *row.cells[4:]) == ("train", "b", "+83.3", "0", "5", "0.062")
    # Slots are no difference.
    assert [row.cells for row in configuration_grid(items).rows] == [["horizons.train", "absent", "9"]]
    (pair,) = comparison_data(items)["paired"]
    assert (pair["a"], pair["b"], pair["only_b"], pair["p_value"]) == ("a", "b", 5, pytest.approx(2 / 32))
    page = tmp_path / "page.html"
    write_comparison(page, items)
    assert "a and b" in page.read_text()
    assert "Curves" not in page.read_text()
    write_comparison(tmp_path / "page.md", items)
    assert "| train | b | +83.3 |" in (tmp_path / "page.md").read_text()


def test_two_protocols_are_said(tmp_path):
    """A base evaluated greedily, and a trained policy that draws."""
    greedy, drawn = ({"success": "once", "sampling": {"temperature": t, "top_k": 0}} for t in (0.0, 1.0))
    a = evaluation(tmp_path / "a", True, False, evaluation=greedy)
    b = evaluation(tmp_path / "b", True, True, evaluation=drawn)
    assert success_grid(read_items([a, b])).note == (
        "Not one protocol: evaluation.sampling.temperature differ, so this compares more than policies."
    )
    assert success_grid(read_items([a, evaluation(tmp_path / "c", True, evaluation=greedy)])).note == ""


def test_shuffled_instructions_that_change_nothing_are_said(tmp_path):
    own, shuffled = ({"ablation": {"instructions": kind, "frames": "own"}} for kind in ("own", "shuffled"))
    a = evaluation(tmp_path / "a", *[True, False] * 20, **own)
    same = evaluation(tmp_path / "same", *[True, False] * 20, **shuffled)
    worse = evaluation(tmp_path / "worse", *[False] * 40, **shuffled)
    note = paired_grid(read_items([a, same, worse])).note
    assert "same, train: instructions differ (ablation.instructions), and success does not" in note
    assert "the policy may ignore the language" in note
    assert "worse, train" not in note


def test_a_result_file_names_the_folder_that_has_its_episodes(tmp_path):
    a, b = evaluation(tmp_path / "a", True, False), evaluation(tmp_path / "b", True, True)
    write_atomically(tmp_path / "copy.json", to_json(report(results(True, True)) | {"folder": str(b)}))
    items = read_items([a, tmp_path / "copy.json"])
    assert [item.name for item in items] == ["a", "copy"]
    assert len(paired_grid(items).rows) == 1


def test_a_run_alone_is_compared_with_its_base(tmp_path):
    items = read_items([run(tmp_path / "r", [0.5], [False, True], [True, True])])
    assert [item.name for item in items] == ["r (base)", "r (final)"]
    assert paired_grid(items).rows[0].cells[2] == "+50.0"
    with pytest.raises(ConfigError, match="found one evaluation to compare"):
        read_items([run(tmp_path / "young", [0.5], [False], None)])


def test_runs_show_their_last_evaluation_and_curves(tmp_path):
    one = run(tmp_path / "one", [0.1, 0.2], [False, False], [True, False])
    two = run(tmp_path / "two", [0.3, 0.4], [False, False], [True, True], iterations=4)
    items = read_items([one, two])
    assert success_grid(items).rows[0].cells == ["train", "50.0 %", "100.0 %"]
    assert [row.cells for row in configuration_grid(items).rows] == [["iterations", "3", "4"]]
    assert [grid.title for grid in comparison_grids(items)] == [
        "Success", "Compared with one, on the same scenarios", "What differs",
    ]  # fmt: skip
    write_comparison(tmp_path / "page.html", items)
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="line s1"') == 3, "one for each curve that has values"


def test_equal_names_get_numbers(tmp_path):
    (tmp_path / "x").mkdir()
    items = read_items([evaluation(tmp_path / "x" / "a", True), evaluation(tmp_path / "a", True)])
    assert [item.name for item in items] == ["a", "a #2"]


def test_what_cannot_be_compared(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"neither a run nor an evaluation; give a folder that `treadle train`"):
            read_items([path, path])
    write_atomically(tmp_path / "x.json", '{"suites": {"train": {"success": "high"}}}')
    with pytest.raises(OutputError, match=r"x.json: no 'suites.train.episodes'; it must be given"):
        read_items([tmp_path / "x.json"] * 2)


def test_runs_that_differ_in_their_seeds_are_one_line_with_a_band(tmp_path):
    folders = [
        run(tmp_path / "s0", [0.0, 0.5], [], None, seed=0, output="here"),
        run(tmp_path / "s1", [1.0], [], None, seed=1, output="there"),
        run(tmp_path / "other", [0.5, 0.5], [], None, seed=0, iterations=9),
    ]
    groups = group_runs([read_run(folder) for folder in folders])
    assert [group.name for group in groups] == ["s0, s1", "other"]
    page = comparison_curves(groups[:1])
    # Success is drawn from 0 to 1, from 180 to 12 pixels below the top: the mean of 0 and 1 lies between them.
    first = page.partition("</figure>")[0]
    assert re.search(r'class="line s0" d="M52\.0 96\.0"', first)
    assert re.search(r'class="band s0" d="M52\.0 12\.0L52\.0 180\.0Z"', first)
    # Half of ten episodes: Wilson's interval from 0.2366 to 0.7634.
    alone = comparison_curves(groups[1:]).partition("</figure>")[0]
    assert f"M52.0 {180 - 168 * 0.763407:.1f}" in alone
    assert comparison_curves([]) == ""
