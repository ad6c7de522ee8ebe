"""Recipes as files, and published ones against the publications' numbers, which are typed in here."""

from pathlib import Path

import pytest

from recipe_runs import chunk_of, names, published
from treadle.config import named_files
from treadle.config.loading import configure, load_recipe
from treadle.config.protocols import find_protocol
from treadle.config.recipes import read_recipe
from treadle.config.schema import LoadingConfig, TrainConfig
from treadle.errors import ConfigError

LIBERO = ("spatial", "object", "goal", "10", "90", "130")
ROBOTWIN = (
    "beat_block_hammer", "pick_dual_bottles", "place_empty_cup", "place_container_plate", "move_can_pot", "lift_pot",
    "handover_block",
)  # fmt: skip
WANTED = {
    *(f"rlinf/maniskill-{policy}-{kind}" for policy in ("openvla", "openvla-oft") for kind in ("ppo", "grpo")),
    *(f"rlinf/libero-{suite}-grpo" for suite in LIBERO),
    *(f"rlinf/robotwin-{task}-grpo" for task in ROBOTWIN),
    *(f"{who}/libero-{suite}-grpo" for who in ("simplevla-rl", "openvla-oft", "one-gpu") for suite in LIBERO[:4]),
    "one-gpu/libero-130-grpo", "rl4vla/maniskill-openvla-ppo",
}  # fmt: skip


def test_what_is_offered() -> None:
    assert set(names()) == WANTED


# Slots, rollouts, group, control steps of a rollout, chunk; samples of an iteration, its optimizer steps, micro-batch.
ARITHMETIC = {
    "rlinf/maniskill-openvla-ppo": (128, 1, 1, 160, 1, 20480, 32, 40),
    "rlinf/maniskill-openvla-grpo": (256, 1, 8, 80, 1, 20480, 32, 40),
    "rlinf/maniskill-openvla-oft-ppo": (128, 1, 1, 160, 8, 2560, 4, 40),
    "rlinf/maniskill-openvla-oft-grpo": (256, 1, 8, 80, 8, 2560, 4, 40),
    **{f"rlinf/libero-{suite}-grpo": (64, 16, 8, 512, 8, 65536, 4, 32) for suite in LIBERO[:4]},
    **{f"rlinf/libero-{suite}-grpo": (64, 64, 8, 512, 8, 262144, 16, 32) for suite in LIBERO[4:]},
    **{f"rlinf/robotwin-{task}-grpo": (128, 8, 8, 200, 25, 8192, 8, 32) for task in ROBOTWIN},
    "rlinf/robotwin-pick_dual_bottles-grpo": (128, 8, 8, 100, 25, 4096, 4, 32),
    "rlinf/robotwin-place_container_plate-grpo": (128, 8, 8, 150, 25, 6144, 6, 32),
    "rlinf/robotwin-handover_block-grpo": (128, 8, 8, 400, 25, 16384, 16, 32),
    "rl4vla/maniskill-openvla-ppo": (64, 1, 1, 80, 1, 5120, 32, 8),
    **{f"simplevla-rl/libero-{suite}-grpo": (64, 8, 8, 512, 8, 32768, 4, 16) for suite in LIBERO[:4]},
}


@pytest.mark.parametrize("name", sorted(ARITHMETIC))
def test_published_arithmetic(name: str) -> None:
    config = load_recipe(name)
    algorithm, chunk = config.algorithm, chunk_of(config)
    a_rollout = config.simulator.slots * config.decisions
    found = (
        config.simulator.slots, config.needs.rollouts, config.needs.group_size, config.decisions * chunk, chunk,
        a_rollout * config.needs.rollouts, algorithm.count_steps(a_rollout), algorithm.micro_batch,
    )  # fmt: skip
    assert found == ARITHMETIC[name]
    assert algorithm.epochs == 1
    # Groups need whole episodes.
    assert config.needs.partial_reset or config.simulator.horizon <= config.decisions * chunk


# Rate of the policy and of values, gradient norm, LoRA rank, temperature in training and in evaluation, prompt tokens.
LEARNING = {
    "rlinf/maniskill-openvla-ppo": (1e-4, 3e-3, 10, 32, 1.0, 0.6, 30),
    "rlinf/maniskill-openvla-grpo": (1e-5, None, 1, 0, 1.0, 0.6, 30),
    "rlinf/maniskill-openvla-oft-ppo": (1e-4, 3e-3, 10, 32, 1.0, 0.6, 30),
    "rlinf/maniskill-openvla-oft-grpo": (1e-4, None, 10, 32, 1.0, 0.6, 30),
    **{f"rlinf/libero-{suite}-grpo": (2e-5, None, 1, 0, 1.6, 1.6, 128) for suite in LIBERO},
    **{f"rlinf/robotwin-{task}-grpo": (2e-4, None, 1, 32, 1.6, 0, 512) for task in ROBOTWIN},
    **{f"rlinf/robotwin-place_{x}-grpo": (1e-4, None, 1, 32, 1.6, 0, 512) for x in ("empty_cup", "container_plate")},
    "rl4vla/maniskill-openvla-ppo": (1e-4, 3e-3, 10, 32, 1.0, 0.6, 30),
}


@pytest.mark.parametrize("name", sorted(LEARNING))
def test_published_learning(name: str) -> None:
    config = load_recipe(name)
    policy, optimizer = config.policy, config.optimizer
    found = (
        optimizer.learning_rate, config.critic.learning_rate if config.has_critic else None, optimizer.gradient_norm,
        policy.lora.rank, policy.sampling.temperature, config.evaluation.sampling.temperature,
        policy.options["prompt_length"],
    )  # fmt: skip
    assert found == LEARNING[name]
    assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.999), 0.01)
    assert (policy.dtype, policy.gradient_checkpointing, policy.freeze_vision) == ("bfloat16", True, False)
    algorithm = config.algorithm
    assert (algorithm.clip_low, algorithm.clip_high) == (0.2, 0.2 if name.startswith("rl4vla") else 0.28)
    if config.has_critic:
        assert (algorithm.gamma, algorithm.gae_lambda, algorithm.bootstrap) == (0.99, 0.95, "always")
        assert (config.critic.kind, config.critic.clip, config.critic.huber_delta) == ("value_head", 0.2, 10)
        assert algorithm.partial_reset
    kept = (algorithm.filter.low, algorithm.filter.high)
    assert kept == ((0.0, 1.0) if "maniskill" in name else (0.1, 0.9))
    assert algorithm.reward_level == "action"
    assert algorithm.ratio_level == ("action" if policy.kind == "openvla" else "token")


def test_published_placements() -> None:
    for name in names("maniskill"):
        config = load_recipe(name)
        placed = (config.placement.simulate, config.placement.generate, config.placement.train)
        hybrid = name.startswith("rlinf") and name != "rlinf/maniskill-openvla-oft-grpo"
        assert placed == (("0-3", "4-7", "0-7") if hybrid else ("all", "all", "all"))
    stages = {name: load_recipe(name).collection.lanes for name in names() if name.startswith("rlinf/")}
    assert {name for name, count in stages.items() if count == 2} == {
        f"rlinf/maniskill-openvla-{algorithm}" for algorithm in ("ppo", "grpo")
    }
    assert set(stages.values()) == {1, 2}


def departures(recipe_name: str) -> set[str]:
    recipe = read_recipe(recipe_name)
    assert recipe.protocol is not None
    config: TrainConfig = configure(recipe)
    settings = config.model_dump(mode="json", include={"policy", "simulator", "evaluation"})
    settings["policy"] = {key: value for key, value in settings["policy"].items() if key in LoadingConfig.model_fields}
    return {key for key, _, _ in find_protocol(recipe.protocol).departures(settings)}


@pytest.mark.parametrize("name", names())
def test_it_is_evaluated_as_its_publisher_does(name: str) -> None:
    """But for the part of the protocol that the recipe is of, and for what its own list says."""
    found = departures(name)
    of_training = {"policy.dtype", "simulator.horizon", *(f"simulator.options.{x}" for x in ("device", "scenes"))}
    of_training.add("simulator.options.train_seeds")
    part = {"simulator.options.suite", "policy.statistics", "evaluation.suites", "evaluation.episodes"}
    policy = {key for key in found if key.startswith(("policy.options.", "policy.kind"))}
    said = {"simulator.options.after_success", "simulator.options.episodes", "evaluation.repeats"}
    assert found <= of_training | part | policy | said
    about = read_recipe(name).about
    assert (found & said == set()) or about.differs


def test_every_published_recipe_says_where_it_is_from() -> None:
    for recipe in published():
        about = recipe.about
        assert about.source
        assert about.differs
        assert about.size == "7b"
        assert "/" in about.checkpoint
        assert about.checkpoint.endswith(f"/{configure(recipe).policy.checkpoint}")
        assert recipe.summary.endswith("Never run on a GPU.")


def write(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


def test_a_recipe_lies_over_another_and_over_its_protocol(tmp_path: Path) -> None:
    write(tmp_path, "# Below.\ndecisions = 3\n[simulator]\nhorizon = 7\n[about]\ndevices = 2\n", "_below")
    mine = "# Mine.\nextends = '_below'\nprotocol = 'treadle/tabletop'\n[evaluation]\nepisodes = 5\n"
    recipe = read_recipe(write(tmp_path, mine))
    assert (recipe.summary, recipe.about.devices, recipe.protocol) == ("Mine.", 2, "treadle/tabletop")
    assert recipe.own == {"decisions": 3, "simulator": {"horizon": 7}, "evaluation": {"episodes": 5}}
    config = configure(recipe)
    # The protocol has horizon 80 and 256 episodes; what it alone says stays.
    assert (config.decisions, config.simulator.horizon, config.evaluation.episodes) == (3, 7, 5)
    assert config.evaluation.suites == ("train", "vision", "semantic", "execution")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends = 'absent'", r"mine.toml: extends: found 'absent', but there is no .*absent.toml"),
        ("extends = 'mine'", "mine.toml: extends: found 'mine', which comes back to itself"),
        ("extends = 'other'", "other.toml: extends: found 'mine', which comes back to itself"),
        ("extends = 3", "mine.toml: extends: found 3; allowed: the path of another file"),
        ("protocol = 'rlinf/libero-13'", "protocol: found .rlinf/libero-13., did you mean 'rlinf/libero-130'"),
        ("protocol = 3", "mine.toml: protocol: found 3; allowed: a name that `treadle protocols` lists"),
        ("[about]\ncards = 3", "mine.toml: about.cards: .*; keys: source, checkpoint, size"),
        ("[about]\ndevices = 0", "mine.toml: about.devices: .*greater than 0"),
        ("about = 3", "mine.toml: about: "),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "# Other.\nextends = 'mine'\n", "other")
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, f"# Mine.\n{text}\n"))


def test_names_with_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab").mkdir()
    write(tmp_path / "lab", "# Ours.\nseed = 3\n", "ours")
    write(tmp_path / "lab", "# Shared.\n", "_shared")
    monkeypatch.setattr(named_files, "RECIPES", tmp_path)
    assert load_recipe("lab/ours").seed == 3
    with pytest.raises(ConfigError, match="unknown recipe 'lab/our', did you mean 'lab/ours'"):
        load_recipe("lab/our")
    with pytest.raises(ConfigError, match="unknown recipe 'lab/_shared'"):
        load_recipe("lab/_shared")
