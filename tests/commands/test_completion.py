"""What shells complete, by the protocols of bash, zsh and fish."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from treadle.cli import app
from treadle.config.schema import EvaluationConfig


def zsh(*words: str) -> list[str]:
    """What zsh is offered for the last word."""
    line = " ".join(["treadle", *words])
    said = run({"_TREADLE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line})
    return re.findall(r'(?:^|\(\()"([^"]+)"', said, re.MULTILINE)


def bash(*words: str) -> list[str]:
    """What bash is offered for the last word; it takes `=` for a word of its own."""
    line = "\n".join(["treadle", *words])
    environment = {"_TREADLE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    return run(environment).split()


def run(environment: dict[str, str]) -> str:
    return CliRunner(env=environment).invoke(app, [], prog_name="treadle").stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["tr"], ["train"]),
        (["simulators", "in"], ["install"]),
        (["train", "quickstart-"], ["quickstart-grpo", "quickstart-openvla"]),
        (["sft", "tabletop-base-"], ["tabletop-base-flow", "tabletop-base-openvla"]),
        (["train", "quickstart", "algorithm.ga"], ["algorithm.gamma=", "algorithm.gae_lambda="]),
        (["train", "quickstart", "algorithm.kind=p"], ["algorithm.kind=ppo"]),
        (["train", "quickstart", "overlap="], ["overlap=none", "overlap=stream", "overlap=async"]),
        (["train", "quickstart", "wandb="], ["wandb=true", "wandb=false"]),
        (["train", "quickstart", "seed="], ["seed=0"]),
        (["train", "quickstart", "simulator.name=ta"], ["simulator.name=tabletop"]),
        (["train", "quickstart", "policy.checkpoint=ta"], ["policy.checkpoint=tabletop-base"]),
        (["train", "quickstart", "policy.kind=openvla_"], ["policy.kind=openvla_oft"]),
        (["train", "quickstart", "evaluation.suites=train,v"], ["evaluation.suites=train,vision"]),
        (["sft", "tabletop-base", "imitation.st"], ["imitation.steps=", "imitation.statistics="]),
        (["eval", "table"], ["tabletop-base"]),
        (["eval", "tabletop-base", "evaluation.success="], ["evaluation.success=once", "evaluation.success=end"]),
        (["eval", "tabletop-base", "--protocol", "treadle/"], ["treadle/tabletop", "treadle/tabletop-sampled"]),
        (["protocols", "treadle/"], ["treadle/tabletop", "treadle/tabletop-sampled"]),
        (["eval", "tabletop-base", "--device", "cu"], ["cuda", "cuda\\\\:0"]),
        (["policy", "inspect", "tabletop-"], ["tabletop-base"]),
        (["policy", "inspect", "tabletop-base", "policy.dt"], ["policy.dtype=auto", "policy.dtype=float32"]),
        (["simulators", "view", "tablet"], ["tabletop"]),
        (["simulators", "view", "tabletop", "--suite", "s"], ["semantic"]),
        (["recipes", "--keys", "e"], ["eval"]),
        (["recipes", "own-"], ["own-robot"]),
        (["record", "tabletop-base", "sampling.temp"], ["sampling.temperature=1.0"]),
        (["serve", "tabletop-base", "sampling.temp"], ["sampling.temperature=0.0"]),
        (["data", "check", "x", "simulator.name=lib"], ["simulator.name=libero"]),
        (["train", "quickstart", "nothing.of.the.kind"], []),
    ],
)
def test_what_is_offered(words: list[str], offered: list[str]) -> None:
    assert zsh(*words)[: len(offered) or 1] == offered


def test_bash_parts_words_at_equals_signs() -> None:
    assert bash("train", "quickstart", "overlap", "=") == ["none", "stream", "async"]
    assert bash("train", "quickstart", "seed", "=", "3", "overlap", "=", "a") == ["async"]
    assert bash("eval", "tabletop-base", "evaluation.suites", "=", "train,v") == ["train,vision"]
    assert bash("train", "quickstart", "overl") == ["overlap=none", "overlap=stream", "overlap=async"]


def test_recipes_are_those_of_the_command() -> None:
    assert "tabletop-base" not in zsh("train", "tabletop-")
    assert "quickstart" not in zsh("sft", "")
    assert {"quickstart", "tabletop-base"} <= {*zsh("recipes", "")}


def test_suites_are_those_of_the_simulator() -> None:
    assert zsh("train", "quickstart", "evaluation.suites=")[:4] == [
        f"evaluation.suites={suite}" for suite in EvaluationConfig().suites
    ]
    assert "evaluation.suites=goal" not in zsh("train", "quickstart", "evaluation.suites=g")
    assert "evaluation.suites=goal" in zsh("train", "rlinf/libero-goal-grpo", "evaluation.suites=g")


def test_runs_are_offered_where_a_checkpoint_or_a_run_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "file").touch()
    for command in (["eval"], ["report"], ["compare"], ["policy", "inspect"], ["serve"], ["record"]):
        assert zsh(*command, "runs/") == ["runs/mine"]


def commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}".strip())
    if not hasattr(command, "commands"):
        yield path, command


PATHS = {"plan --profile", "plan --save-profile", "eval --reproduce", "eval --output", "record --output"} | {
    *("record --rerun", "compare --page", "simulators view --video")
}
"""Files, which shells complete themselves."""
FREE = {"plan --size", "serve --host", "serve --camera", "simulators settle --python"}
"""Words that nobody can know."""


def test_every_word_of_every_command_is_completed() -> None:
    left: set[str] = set()
    for path, command in commands(typer.main.get_command(app)):
        for parameter in command.params:
            words = parameter.bare_type() in ("str", "Path", "list[str]", "list[Path]")
            known = not words or getattr(parameter, "is_flag", False) or parameter._custom_shell_complete is not None
            if not known and "--json" not in parameter.opts and "--help" not in parameter.opts:
                left.add(f"{path} {parameter.opts[0]}")
    assert left == PATHS | FREE
