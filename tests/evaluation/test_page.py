"""The pages of an evaluation."""

from pathlib import Path
from typing import Any

import pytest

from treadle.config.protocols import EvalConfig, Protocol, Published
from treadle.config.schema import EvaluationConfig
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.evaluation.evaluate import summarize_suite
from treadle.evaluation.page import columns_of, sampling_of, status, write_pages
from treadle.files import to_json, write_atomically


def episode(suite: str, index: int, good: bool) -> EpisodeResult:
    return EpisodeResult(
        Scenario("fake", suite, f"task{index % 2}", "evaluation", index, "do <it>"), good, good, 1.0, 3
    )


def report_of(**suites: list[bool]) -> dict[str, Any]:
    config = EvalConfig(evaluation=EvaluationConfig(suites=tuple(suites)))
    made = config.model_dump(mode="json", exclude={"collection"})
    return {
        "suites": {
            suite: summarize_suite(suite, [episode(suite, i, good) for i, good in enumerate(of)])
            for suite, of in suites.items()
        },
        "wanted": sum(map(len, suites.values())),
        "complete": True,
        "manifest": {"checkpoint": "my <policy>", "weights_sha256": {"a.safetensors": "0123"}, **made},
    }


PROTOCOL = Protocol(
    name="lab/p",
    summary="",
    columns={"all": ("train", "odd"), "rest": ("odd", "absent")},
    published=(Published(model="theirs", sampling="greedy", source="Somewhere", success={"all": 33.3}),),
)


def test_a_page_holds_all_it_shows_and_escapes_it(tmp_path: Path):
    write_atomically(tmp_path / "videos" / "failure-0.mp4", b"film")
    entry = {
        "file": "failure-0.mp4", "suite": "train", "scenario": "fake/train/0", "instruction": "do <it>",
        "success": False, "length": 3,
    }  # fmt: skip
    gone = entry | {"file": "../../secret.mp4", "success": True}
    write_atomically(tmp_path / "videos" / "videos.json", to_json([entry, gone]))
    path = write_pages(tmp_path, report_of(train=[True, False, True], odd=[False]), PROTOCOL)
    page = path.read_text()
    for text in (
        "my &lt;policy&gt; · lab/p",
        "66.7 %",
        "theirs [1]",
        "33.3 %",
        "do &lt;it&gt;",
        "a.safetensors",
        "0123",
    ):
        assert text in page
    assert "<it>" not in page
    assert page.count("data:video/mp4;base64,ZmlsbQ==") == 1
    assert page.count("The film is missing.") == 1
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# my <policy> · lab/p\n\n4 episodes, complete.\n")
    assert "| theirs [1] | greedy | 33.3 % |   |" in text
    # Mean of 2/3 and 0 over suites; the column `rest` lacks a suite.
    assert "| my <policy> | greedy | 33.3 % |   |" in text
    assert "| task0 | 100.0 % |" in text


def test_columns_are_means_over_suites():
    found = columns_of(report_of(train=[True] * 3 + [False], odd=[True, False]), PROTOCOL)
    assert found.keys() == {"all"}
    assert found["all"][0] == pytest.approx((0.75 + 0.5) / 2)


def test_an_unfinished_evaluation_says_so(tmp_path: Path):
    report = report_of(train=[True]) | {"complete": False, "wanted": 9}
    assert status(report) == "Unfinished: 1 of 9 episodes. The same command goes on."
    assert "Unfinished: 1 of 9" in write_pages(tmp_path, report).read_text()


def test_sampling_in_words():
    assert sampling_of({"evaluation": {"sampling": {"temperature": 0.0}}}) == "greedy"
    assert sampling_of({"evaluation": {"sampling": {"temperature": 1.6}}}) == "sampled at 1.6"
