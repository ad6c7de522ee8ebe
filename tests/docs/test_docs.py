"""The docs say what is there: commands parse, files exist, the generated page is current, the example runs."""

import ast
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import typer.main
from typer.testing import CliRunner

from fake_simulator import one_after_another
from miniature import make_policy, make_rollout
from treadle.cli import app
from treadle.commands.keys import REFERENCES, key_page
from treadle.config.describe import describe
from treadle.config.loading import read_config
from treadle.config.schema import SimulatorConfig, TrainConfig
from treadle.config.supervised import SupervisedConfig
from treadle.environments.environment import read_environment
from treadle.simulators.build import simulator_factory
from treadle.simulators.host import Host
from treadle.training.algorithm import Training, make_algorithm

ROOT = Path(__file__).parents[2]
SELF_IMITATION = "my_package.settings:SelfImitationConfig"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def commands() -> list[str]:
    """Every treadle command in code of the docs: blocks, and inline spans with at least a subcommand."""
    found: set[str] = set()
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += re.findall(r"^ {4}(\S.*)$", prose, re.MULTILINE) + re.findall(r"`([^`\n]+)`", prose)
        for line in lines:
            words = line.split("#")[0].strip().removeprefix(".venv/bin/")
            if words.startswith("treadle "):
                found.add(words)
    return sorted(found)


def test_there_are_commands_to_check():
    assert len(commands()) > 10


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command):
    """Subcommand, options and number of arguments are accepted by the real parser, and keys exist."""
    words = shlex.split(command.replace("[KEY=VALUE ...]", "seed=1").replace("[key=value ...]", "seed=1"))[1:]
    parser = typer.main.get_command(app)
    if words[0].startswith("--"):
        assert any(words[0] in option.opts for option in parser.params)
        return
    context = parser.make_context("treadle", words, resilient_parsing=False)
    while hasattr(parser, "resolve_command"):
        _, parser, words = parser.resolve_command(context, words)
        assert parser is not None
        if "--help" in words:
            return
        if hasattr(parser, "resolve_command") and not words:
            return
        if not words and any(param.required for param in parser.params):
            return  # named in prose without its arguments
        context = parser.make_context(parser.name, list(words), parent=context)
    keys = describe(SupervisedConfig if command.startswith("treadle sft ") else TrainConfig)
    words = [word for word in context.params.get("words") or [] if "=" in word]
    for word in [*words, *(context.params.get("overrides") or [])]:
        name = word.partition("=")[0]
        assert any(name == key.name or (key.open and name.startswith(f"{key.name}.")) for key in keys)


def test_settings_that_are_named_exist():
    keys = [*describe(TrainConfig), *describe(SupervisedConfig)]
    sections = {key.name.partition(".")[0] for key in keys if "." in key.name}
    named = re.compile(rf"`((?:{'|'.join(sorted(sections))})(?:\.[a-z_]+)+)\s*[=`]")
    found = [(page.name, name) for page in PAGES for name in named.findall(page.read_text())]
    assert len(found) > 50
    no_settings = {"model.safetensors", "policy.entries", "preflight.json"}
    for page, name in (pair for pair in found if pair[1] not in no_settings):
        assert any(name == key.name or (key.open and name.startswith(f"{key.name}.")) for key in keys), (page, name)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_lists_are_apart_from_the_text_above_them():
    """Below a line of text the site's generator takes a list for more text."""
    for page in (ROOT / "docs").glob("*.md"):
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        run_on = re.findall(r"^(?!- |\d+\. |#| |\n)(.+)\n(?:- |\d+\. )", prose, re.MULTILINE)
        assert not run_on, (page.name, run_on)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:^ {4}|`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets, page.name


def test_files_of_the_house_exist():
    text = (ROOT / "docs" / "concepts.md").read_text()
    for path in re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", text):
        assert (ROOT / "src" / "treadle" / path).exists(), path


def definitions(path: Path) -> set[str]:
    """`function`, `Class` and `Class.member` of a file; methods and annotated fields are members."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            for part in ast.walk(node):
                name = part.name if isinstance(part, ast.FunctionDef) else None
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    name = part.target.id
                found |= {f"{node.name}.{name}"} if name else set()
    return found


def test_an_update_names_what_is_there():
    """Everything in backticks is a file, a class, a member or function of a file that the page names, or a shape."""
    text = (ROOT / "docs" / "an-update.md").read_text()
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    spans = {span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)}
    files = {span for span in spans if span.endswith(".py")}
    assert len(files) > 20
    for file in files:
        assert (ROOT / "src" / "treadle" / file).exists(), file
    known = set().union(*(definitions(ROOT / "src" / "treadle" / file) for file in files))
    settings = {key.name for key in describe(TrainConfig)} | {"simulator.options.reward"}
    for span in spans - files - settings - {"backward"}:
        shape = re.fullmatch(r"\[[A-Za-z0-9, .x]+\]", span)
        assert shape or span.removesuffix("()") in known, span


@pytest.mark.parametrize("command", REFERENCES)
def test_the_pages_of_settings_are_current(command):
    assert (ROOT / "docs" / f"settings-{command}.md").read_text() == key_page(command), "run: make docs"
    assert CliRunner().invoke(app, ["recipes", "--keys", command]).stdout == key_page(command)


def test_only_a_command_has_settings():
    result = CliRunner().invoke(app, ["recipes", "--keys", "report"])
    assert result.exit_code == 2
    assert "--keys: found 'report'; allowed: train, sft, eval" in result.stderr


@pytest.fixture
def self_imitation(monkeypatch):
    """The example of add-an-algorithm.md, as the package `my_package`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add-an-algorithm.md").read_text(), re.DOTALL)
    monkeypatch.setitem(sys.modules, "my_package", ModuleType("my_package"))
    for name, code in zip(("settings", "self_imitation"), blocks, strict=True):
        module = ModuleType(f"my_package.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, "add-an-algorithm.md", "exec"), module.__dict__)


def test_recipes_in_the_docs_are_valid(tmp_path, self_imitation):
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)):
            if "entry-points" in block:
                continue
            path = tmp_path / f"{page.stem}-{number}.toml"
            path.write_text(block)
            if "requirements" in block:
                read_environment("example", "example", path)
            else:
                read_config(SupervisedConfig if "\ndataset" in block else TrainConfig, path)


@pytest.fixture
def dots(monkeypatch):
    """The example of add-a-simulator.md, as the module `my_package.dots`."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add-a-simulator.md").read_text(), re.DOTALL)
    module = ModuleType("my_package.dots")
    monkeypatch.setitem(sys.modules, "my_package", ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, "my_package.dots", module)
    exec(compile(code, "add-a-simulator.md", "exec"), module.__dict__)
    return module


def test_the_example_is_a_simulator(dots):
    config = SimulatorConfig(name="my_package.dots:Dots", horizon=15, options={"reach": 0.15})
    simulator = simulator_factory(config)(4)
    assert isinstance(simulator, dots.Dots)
    spec = simulator.spec
    scenarios = simulator.scenarios("train", "evaluation")[:10]
    assert scenarios[3].instruction in simulator.instructions(scenarios[3])

    host = Host(simulator, one_after_another(scenarios), spec.horizon)
    observation = host.start()
    assert observation.frames.std() > 0
    results = []
    while len(slots := host.playing):
        actions = np.zeros((4, 4, 2), np.float32)
        towards = simulator.goal[slots] - simulator.position[slots]
        actions[slots] = np.clip(towards / 4, -0.2, 0.2)[:, None]
        results += host.step(actions).episodes
    assert len(results) == 10
    assert all(result.success_once for result in results)


def test_the_examples_scenarios_do_not_depend_on_the_slot(dots):
    def first_frame(slot: int, index: int) -> np.ndarray:
        simulator = dots.Dots(3)
        seen = simulator.spec.observation(3)
        slots = np.array([slot])
        simulator.reset(slots, [simulator.scenarios("train", "train")[index]])
        simulator.observe(slots, seen)
        return seen.frames[slot]

    assert np.array_equal(first_frame(0, 5), first_frame(2, 5))
    assert not np.array_equal(first_frame(0, 5), first_frame(0, 6))


def test_the_example_is_an_algorithm(self_imitation, tmp_path):
    config = read_config(
        TrainConfig,
        None,
        [
            "algorithm.kind=my_package.settings:SelfImitationConfig",
            "algorithm.capacity=5",
            "optimizer.learning_rate=1e-3",
        ],
    )
    policy = make_policy(tmp_path, chunk=2)
    algorithm = make_algorithm(Training(policy, None, config, torch.device("cpu"), lambda: policy))
    assert algorithm.update([], 0) == {"update/steps": 0.0}
    rollout = make_rollout(policy)
    before = [parameter.detach().clone() for parameter in algorithm.trained]
    losses = [algorithm.update([rollout], iteration)["update/policy_loss"] for iteration in range(3)]
    assert losses[2] < losses[0], "what earned something becomes likelier"
    assert any(not torch.equal(a, b) for a, b in zip(before, algorithm.trained, strict=True))
    assert len(algorithm.choices) == 5
    algorithm.load_state_dict(algorithm.state_dict())


@pytest.mark.integration
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "first-run.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    said = capsys.readouterr().out
    assert "base-0.mp4" in said
    assert "notebook" in said


def test_the_image_installs_what_is_there():
    """Every file that the Dockerfile copies is in the build's context, and it installs through the constraints."""
    text = (ROOT / "Dockerfile").read_text()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    pinned = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert pinned.group() in text
    assert "-c constraints.txt" in text
