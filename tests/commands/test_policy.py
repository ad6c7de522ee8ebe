"""`treadle policy inspect` names the recipes that fit a directory, and what it prints can be run."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recipe_runs import tiny_checkpoint
from treadle.cli import app
from treadle.commands.policy import fitting_recipes, next_commands
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.recipes import read_recipe
from treadle.errors import SimulatorError
from treadle.policies.load import examine_policy
from treadle.simulators.build import simulator_environment

FIXTURES = Path(__file__).parents[1] / "fixtures"
BRIDGE = ["rl4vla/maniskill-openvla-ppo", "rlinf/maniskill-openvla-grpo", "rlinf/maniskill-openvla-ppo"]


def test_the_authors_openvla_oft_for_libero_has_recipes_of_its_own() -> None:
    """It regresses actions, and there are statistics of two suites in the fixture."""
    contents = examine_policy(FIXTURES / "openvla_oft_tiny")
    assert fitting_recipes(contents) == ["openvla-oft/libero-object-grpo", "openvla-oft/libero-spatial-grpo"]
    assert fitting_recipes(contents, ["policy.statistics=libero_object"]) == ["openvla-oft/libero-object-grpo"]
    folder = shlex.quote(str(FIXTURES / "openvla_oft_tiny"))
    options = "policy.options.cameras=2 policy.options.head=laplace"
    chosen = "policy.statistics=libero_spatial"
    assert next_commands(contents, [chosen]) == [
        f"treadle eval {folder} --protocol openvla-oft/libero-spatial {options} {chosen}",
        f"treadle train openvla-oft/libero-spatial-grpo policy.checkpoint={folder} {chosen}",
    ]


def test_openvla_with_statistics_of_bridge_fits_put_on_plate() -> None:
    contents = examine_policy(FIXTURES / "openvla_tiny")
    assert fitting_recipes(contents) == BRIDGE
    assert (
        f"treadle train {BRIDGE[0]} policy.checkpoint={shlex.quote(str(FIXTURES / 'openvla_tiny'))}"
        in next_commands(contents)
    )


def test_recipes_of_other_policies_do_not_fit_and_a_packaged_name_is_its_name() -> None:
    contents = examine_policy(resolve_checkpoint("tabletop-base"))
    assert next_commands(contents) == [
        "treadle eval tabletop-base --suite train simulator.name=tabletop simulator.horizon=40",
        "treadle train quickstart policy.checkpoint=tabletop-base",
        "treadle train quickstart-grpo policy.checkpoint=tabletop-base",
    ]


@pytest.mark.parametrize(
    ("made_for", "fitting"),
    [
        (
            "one-gpu/libero-spatial-grpo",
            ["one-gpu/libero-spatial-grpo", "rlinf/libero-spatial-grpo", "simplevla-rl/libero-spatial-grpo"],
        ),
        ("rlinf/libero-130-grpo", ["one-gpu/libero-130-grpo", "rlinf/libero-130-grpo"]),
        ("openvla-oft/libero-goal-grpo", ["openvla-oft/libero-goal-grpo"]),
        ("rlinf/robotwin-lift_pot-grpo", ["rlinf/robotwin-lift_pot-grpo"]),
        (
            "rlinf/maniskill-openvla-oft-ppo",
            ["rlinf/maniskill-openvla-oft-grpo", "rlinf/maniskill-openvla-oft-ppo"],
        ),
        ("rl4vla/maniskill-openvla-ppo", BRIDGE),
    ],
)
def test_what_fits_and_runs_up_to_what_is_missing(
    made_for: str, fitting: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(made_for)
    folder = tiny_checkpoint(recipe, tmp_path)
    contents = examine_policy(folder)
    assert fitting_recipes(contents) == fitting
    commands = next_commands(contents)
    trainings = [command for command in commands if command.startswith("treadle train ")]
    assert [command.split()[2] for command in trainings] == fitting
    monkeypatch.setattr("treadle.simulators.build.find_environment", lambda name, target: NotInstalled(name))
    monkeypatch.chdir(tmp_path)
    for command in commands:
        done = CliRunner().invoke(app, [*shlex.split(command)[1:], *(["device=cpu"] if " train " in command else [])])
        assert done.exit_code == 2, (command, done.output)
        assert "its environment is not there" in done.stderr, command
    assert simulator_environment(recipe.settings["simulator"]["name"]) is not None


class NotInstalled:
    """The environment of a simulator that nobody has installed."""

    def __init__(self, name: str) -> None:
        self.variables: dict[str, str] = {}
        self.name = name

    def interpreter(self) -> None:
        raise SimulatorError(f"{self.name}: its environment is not there")
