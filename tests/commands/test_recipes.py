"""Published recipes on the command line: shown, planned and rehearsed where neither checkpoint nor card is."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recipe_runs import names
from treadle.cli import app
from treadle.commands.plan import plan_run
from treadle.config.loading import configure
from treadle.config.recipes import read_recipe


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def treadle(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "100", "TERM": "dumb"}).invoke(app, list(arguments))


@pytest.mark.parametrize("name", names())
def test_it_is_planned_without_checkpoint_or_card(name: str) -> None:
    recipe = read_recipe(name)
    planned = plan_run(configure(recipe), memory=False, about=recipe.about)
    assert planned.elsewhere
    assert len(planned.placement.players) in (1, 4, 8)
    assert len(planned.placement.ranks) == recipe.about.devices
    cards = f"No graphics card is here; planned for the {recipe.about.devices} of 80 GB that the recipe is for."
    assert planned.notes[0] == cards
    assert f"hf download {recipe.about.checkpoint} --local-dir" in planned.notes[1]


ARITHMETIC = {
    "rlinf/maniskill-openvla-ppo": (
        "hybrid, 8 processes: players 4, ranks 8, each with the weights",
        "128 slots, 20,480 decisions a rollout, at most 32 steps an update of 640 decisions in passes of 40",
    ),
    "rlinf/libero-10-grpo": (
        "colocated, 8 processes: players 8, ranks 8, each with a part of the weights",
        "64 slots in 8 groups of 8, 4,096 decisions a rollout, 16 rollouts and 65,536 decisions an update",
        "at most 4 steps an update of 16,384 decisions in passes of 32",
    ),
    "one-gpu/libero-spatial-grpo": (
        "colocated, one process: 32 slots in 4 groups of 8, 960 decisions a rollout",
        "2 rollouts and 1,920 decisions an update, up to 2 rollouts more, at most 2 steps an update of 1,024 decisions",
    ),
}


@pytest.mark.parametrize(("name", "says"), ARITHMETIC.items())
def test_the_arithmetic_is_said(name: str, says: tuple[str, ...]) -> None:
    done = treadle("plan", name)
    assert done.exit_code == 0, done.output
    for part in says:
        assert part in done.output


@pytest.mark.parametrize(
    "name",
    [
        "rlinf/maniskill-openvla-ppo",
        "rlinf/robotwin-lift_pot-grpo",
        "openvla-oft/libero-10-grpo",
        "rlinf/libero-130-grpo",
    ],
)
def test_a_rehearsal_fits_its_cards_and_begins_nothing(name: str, tmp_path: Path) -> None:
    done = treadle("train", name, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "It fits." in done.output
    assert "planned for openvla" in done.output
    assert "Otherwise than published: " in done.output
    assert not list(tmp_path.iterdir())


def test_facts_of_the_checkpoint_count() -> None:
    """Tokens of 14 dimensions need more room than those of 7."""
    recipe = read_recipe("rlinf/robotwin-lift_pot-grpo")
    config = configure(recipe)
    known = plan_run(config, about=recipe.about).plan
    other = plan_run(config, about=recipe.about.model_copy(update={"facts": {}})).plan
    assert known is not None
    assert other is not None
    assert known.policy.action_dim == 14
    assert known.processes[0].train["activations"] > other.processes[0].train["activations"]


def test_training_without_its_checkpoint_says_where_it_is() -> None:
    done = treadle("train", "one-gpu/libero-10-grpo")
    assert done.exit_code == 2
    folder = "Openvla-oft-SFT-libero10-traj1"
    assert (
        f"no checkpoint folder '{folder}'; get it by: hf download Haozhan72/{folder} --local-dir {folder}"
        in " ".join(done.stderr.split())
    )


def test_time_is_not_measured_on_cards_that_are_not_here() -> None:
    done = treadle("plan", "one-gpu/libero-10-grpo", "--time")
    assert done.exit_code == 2
    assert "--time: nothing can be measured on graphics cards that are not here" in " ".join(done.stderr.split())


def test_a_recipe_is_shown() -> None:
    done = treadle("recipes", "rlinf/maniskill-openvla-oft-grpo")
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "Recipe rlinf/maniskill-openvla-oft-grpo, over protocol rlinf/maniskill-put-on-plate" in words
    assert 'simulator.options.after_success "end" "continue"' in words
    assert "Checkpoint: hf download RLinf/RLinf-OpenVLAOFT-ManiSkill-Base-Lora" in words
    assert "Graphics cards: 8 of 80 GB" in words
    assert "Otherwise than published: AdamW's epsilon is 1e-8; published, 1e-5." in words
    done = treadle("recipes", "rlinf/maniskill")
    assert done.exit_code == 2
