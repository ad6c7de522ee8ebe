"""The docs say what is there: commands parse, files exist, the generated page is current, the example runs."""

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

from treadle.cli import app
from treadle.commands.keys import key_page
from treadle.config.describe import describe
from treadle.config.loading import read_config
from treadle.config.schema import SimulatorConfig, TrainConfig
from treadle.data.observation import Observation
from treadle.simulators.build import build_simulator
from treadle.simulators.environments import read_environment
from treadle.simulators.host import Host, one_after_another

ROOT = Path(__file__).parents[2]
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
        _, parser, words = parser.resolve_command(context, words)  # pyright: ignore[reportAttributeAccessIssue]
        assert parser is not None
        if "--help" in words:
            return
        if hasattr(parser, "resolve_command") and not words:
            return
        if not words and any(param.required for param in parser.params):
            return  # named in prose without its arguments
        context = parser.make_context(parser.name, list(words), parent=context)
    for word in context.params.get("overrides") or []:
        name = word.partition("=")[0]
        assert any(name == key.name or (key.open and name.startswith(f"{key.name}.")) for key in describe(TrainConfig))


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:^ {4}|`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets, page.name


def test_files_of_the_house_exist():
    text = (ROOT / "docs" / "concepts.md").read_text()
    for path in re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", text):
        assert (ROOT / "src" / "treadle" / path).exists(), path


def test_the_page_of_settings_is_current():
    assert (ROOT / "docs" / "configuration.md").read_text() == key_page(), "run: make docs"
    assert CliRunner().invoke(app, ["recipes", "--keys"]).stdout == key_page()


def test_recipes_in_the_docs_are_valid(tmp_path):
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)):
            if "entry-points" in block:
                continue
            path = tmp_path / f"{page.stem}-{number}.toml"
            path.write_text(block)
            if "requirements" in block:
                read_environment("example", "example", path)
            else:
                read_config(TrainConfig, path)


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
    simulator = build_simulator(
        SimulatorConfig(name="my_package.dots:Dots", slots=4, horizon=15, options={"reach": 0.15})
    )
    spec = simulator.spec
    scenarios = simulator.scenarios("train", "evaluation")[:10]
    assert scenarios[3].instruction in simulator.instructions(scenarios[3])

    host = Host(simulator, one_after_another(scenarios), spec.horizon)
    observation = host.start()
    assert observation.frames.std() > 0
    results = []
    while len(slots := host.playing):
        actions = np.zeros((4, 4, 2), np.float32)
        towards = simulator.goal[slots] - simulator.position[slots]  # pyright: ignore[reportAttributeAccessIssue]
        actions[slots] = np.clip(towards / 4, -0.2, 0.2)[:, None]
        results += host.step(actions).episodes
    assert len(results) == 10
    assert all(result.success_once for result in results)


def test_the_examples_scenarios_do_not_depend_on_the_slot(dots):
    def first_frame(slot: int, index: int) -> np.ndarray:
        simulator = build_simulator(SimulatorConfig(name="my_package.dots:Dots", slots=3))
        seen = Observation.empty(3, 1, simulator.spec.height, simulator.spec.width, 2, 0)
        slots = np.array([slot])
        simulator.reset(slots, [simulator.scenarios("train", "train")[index]])
        simulator.observe(slots, seen)
        return seen.frames[slot]

    assert np.array_equal(first_frame(0, 5), first_frame(2, 5))
    assert not np.array_equal(first_frame(0, 5), first_frame(0, 6))
