import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from synthetic_run import BASE, FINAL, SETTINGS, evaluation, make_run, metrics_row

from treadle.errors import OutputError
from treadle.reporting.curves import format_number, health_curves
from treadle.reporting.evaluation_table import difference_interval
from treadle.reporting.folder import RunFolder
from treadle.reporting.report import write_report

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> ${name} $$ & put the cube'


class _Page(HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "poster", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "quickstart")).read_text()


def test_the_page_holds_all_it_shows(finished: str) -> None:
    page = _Page(finished)
    assert len(page.links) == 4
    assert all(link.startswith("data:video/mp4;base64,") for link in page.links)
    assert not re.search(r"https?://|url\(|@import", finished)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)


def test_every_number_is_there(finished: str) -> None:
    text = _Page(finished).text
    for suite in SETTINGS:
        for results in (BASE, FINAL):
            result = evaluation(results)["suites"][suite]
            for entry in (result, *result["settings"].values()):
                assert f"{entry['success'] * 100:.1f} %" in text
                assert f"{entry['ci95'][0] * 100:.1f} to {entry['ci95'][1] * 100:.1f}" in text
        assert f"{(FINAL[suite] - BASE[suite]) * 100:+.1f}" in text
    for key, value in metrics_row(100).items():
        assert key in text
        assert format_number(value) in text
    for number in ("5.9", "5.2", "1,024,000", "3,303", "2,346", "21.4 s", "310.0 s"):
        assert number in text
    assert "treadle train" in text
    assert "name=quickstart-again" in text
    assert "of_a_plugin" in text


def test_the_stored_results_are_in_the_page(finished: str) -> None:
    stored = json.dumps(evaluation(FINAL)["manifest"], indent=2).strip("{}").split()
    assert all(word in _Page(finished).text for word in stored)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    content = write_report(make_run(tmp_path / "run", iterations=3, instruction=HOSTILE)).read_text()
    page = _Page(content)
    assert HOSTILE in page.text
    assert not {"script", "img"} & set(page.tags)


def test_warnings_are_listed_as_text(tmp_path: Path, finished: str) -> None:
    assert "Nothing was warned of." in _Page(finished).text
    run = make_run(tmp_path / "run", iterations=3)
    time = "2026-01-01 10:00:00,000"
    lines = [f"{time} WARNING iteration 2: ratios above e^5", f"{time} ERROR {HOSTILE}", "a line of something else"]
    (run / "run.log").write_text("\n".join([*lines, ""]))
    page = _Page(write_report(run).read_text())
    assert "iteration 2: ratios above e^5" in page.text
    assert HOSTILE in page.text
    assert "a line of something else" not in page.text
    assert not {"script", "img"} & set(page.tags)


def test_a_log_that_is_no_text_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=3)
    (run / "run.log").write_bytes(b"\xff\xfe")
    with pytest.raises(OutputError, match=r"run\.log: not UTF-8 text"):
        write_report(run)


def test_a_video_outside_the_run_is_never_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    films = json.loads((run / "videos" / "videos.json").read_text())
    films[0]["base"]["file"] = "../../secret.mp4"
    (run / "videos" / "videos.json").write_text(json.dumps(films))
    page = _Page(write_report(run).read_text())
    assert "secret.mp4 is missing" in page.text
    assert len(page.links) == 3


@pytest.mark.parametrize("played", [0, 1, 12])
def test_an_unfinished_run_says_so(tmp_path: Path, played: int) -> None:
    text = _Page(write_report(make_run(tmp_path / "run", played=played)).read_text()).text
    assert f"unfinished {played} of 100 iterations; no final evaluation and no summary yet" in text
    assert "has not been evaluated yet" in text
    assert "no videos yet" in text


def test_a_run_with_its_base_evaluation_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", played=5)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "base.json").write_text(json.dumps(evaluation(BASE)))
    text = _Page(write_report(run).read_text()).text
    assert "48.4 %" in text
    assert "not yet" in text


def test_what_is_not_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="not the folder of a run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_corrupt_file_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    (run / "summary.json").write_text("{")
    with pytest.raises(OutputError, match=r"summary\.json"):
        write_report(run)


def test_difference_interval_by_hand() -> None:
    # Newcombe 1998, table II, 56/70 - 48/80: difference 0.2, interval 0.0524 to 0.3339.
    first = {"success": 56 / 70, "ci95": (0.691834, 0.876953)}
    second = {"success": 48 / 80, "ci95": (0.490455, 0.700382)}
    low, high = difference_interval(second, first)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_what_where_and_when_are_under_the_title(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    machine = json.loads((run / "machine.json").read_text())
    machine |= {"began": "2026-11-02T10:20:30+00:00", "command": "treadle train quickstart 'a<b'"}
    (run / "machine.json").write_text(json.dumps(machine))
    page = _Page(write_report(run).read_text())
    assert "on tabletop · 2026-11-02 10:20:30 UTC · treadle train quickstart 'a<b'" in page.text
    assert "that training never saw" in page.text


def test_scenarios_that_training_plays_too_are_not_called_unseen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    for name, found in (("base", BASE), ("final", FINAL)):
        (run / "evaluation" / f"{name}.json").write_text(json.dumps(evaluation(found) | {"held_out": False}))
    text = _Page(write_report(run).read_text()).text
    assert "that training never saw" not in text
    assert "that training plays too" in text


def test_what_was_learnt_is_shown_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    films = json.loads((run / "videos" / "videos.json").read_text())
    films[0]["base"]["success"], films[1]["base"]["success"] = True, False
    (run / "videos" / "videos.json").write_text(json.dumps(films))
    text = _Page(write_report(run).read_text()).text
    assert text.index(films[1]["scenario"]) < text.index(films[0]["scenario"])


def test_phones_leave_out_columns_by_name_alone():
    """By its place, the column of episodes in one table is that of success in another."""
    style = files("treadle.reporting").joinpath("style.css").read_text()
    assert "nth-child" not in style
    assert ".evaluation .count, .evaluation .range { display: none; }" in style


def test_a_gap_of_nothing_is_drawn(tmp_path):
    """A logarithm has no place for it; a gap of 0 in most iterations once left an empty chart."""
    rows = [{"iteration": float(i), "update/log_prob_gap": gap} for i, gap in ((1, 0.0), (2, 2.6e-6), (3, 0.0))]
    run = RunFolder(tmp_path, {}, rows, None, None, [], None, None, None)
    drawn = health_curves(run)
    (line,) = re.findall(r'<path class="line s0" d="([^"]+)"', drawn)
    assert line.count("L") == 2
    assert [label for label in ("1e-9", "1e-5") if f">{label}<" in drawn] == ["1e-9", "1e-5"]
