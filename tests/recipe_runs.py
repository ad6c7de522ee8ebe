"""Published recipes at a tiny scale: a random checkpoint of their policy's class, and few slots and decisions."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from stand_ins import SHOWN, SIZE
from treadle.config.loading import configure
from treadle.config.recipes import Recipe, read_recipes
from treadle.config.schema import TrainConfig
from treadle.policies import load_policy
from treadle.policies.load import policy_class
from treadle.policies.prismatic.config import tiny_config
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.prompt import build_tokenizer
from treadle.policies.prismatic.sizes import make_statistics
from treadle.reporting.metrics import read_metrics
from treadle.runtime.loop import train

GROUP = 8
"""Slots: a group, as all recipes have it that have one."""
PROMPT = 30
"""Tokens of a prompt at most; published policies of 7B have up to 512."""


@cache
def published() -> tuple[Recipe, ...]:
    """The recipes that say what they are published on."""
    return tuple(recipe for recipe in read_recipes() if recipe.about.devices)


def names(simulator: str = "") -> list[str]:
    """Of published recipes, those of a simulator."""
    return [recipe.name for recipe in published() if simulator in ("", recipe.stated("simulator", "name"))]


def tiny_checkpoint(recipe: Recipe, folder: Path) -> Path:
    """A random policy of the class, decoding and statistics that the recipe is for."""
    config = configure(recipe)
    kind = config.policy.kind
    assert kind is not None
    made = policy_class(kind)
    assert issubclass(made, PrismaticPolicy)
    actions, proprioception, _ = SHOWN[config.simulator.name]
    count = len(actions)
    facts: dict[str, Any] = {"chunk": 1} if kind == "openvla" else {"chunk": chunk_of(config)}
    facts |= recipe.about.facts | {"action_dim": count}
    taken = facts.setdefault("proprioception_dim", 0)
    assert taken in (0, proprioception)
    words = [f"put it on plate {i}" for i in range(20)]
    tiny = tiny_config(
        made.config_type, vocabulary=build_tokenizer(words, folder / "tokenizer"), width=32, layers=1, heads=2, mlp=64,
        image_size=SIZE, tower_widths=((16, 16, 32),), **facts,
    )  # fmt: skip
    key = config.policy.statistics or config.simulator.name
    low, high = [-0.05] * count, [0.05] * (count - 1) + [1.0]
    state = [1.0] * proprioception
    statistics = make_statistics(key, low, high, [-x for x in state], state, [True] * (count - 1) + [False])
    policy = made.create(tiny, statistics, folder / "tokenizer", seed=3)
    with torch.no_grad():
        policy.language_model.lm_head.weight.mul_(8)
    policy.save(folder / "policy")
    return folder / "policy"


def chunk_of(config: TrainConfig) -> int:
    """Actions of a decision, as the recipe's policy has them."""
    return config.policy.options.get("chunk", 1 if config.policy.kind == "openvla" else 8)


def small(recipe: Recipe, checkpoint: Path, output: Path) -> list[str]:
    """Overrides for a run of two iterations of two decisions, in one process on a CPU."""
    config = configure(recipe)
    horizon = 2 * chunk_of(config)
    given = [
        "device=cpu", "torch_threads=1", "iterations=2", "decisions=2", f"simulator.slots={GROUP}",
        f"simulator.horizon={horizon}", f"evaluation.horizon={horizon}", "evaluation.horizons={}",
        "evaluation.episodes=1", "evaluation.repeats=1", "evaluation.videos=0", "placement.simulate=all",
        "placement.generate=all", "placement.train=all", "collection.lanes=1", "collection.workers=1",
        "algorithm.minibatch=8", "algorithm.micro_batch=4", f"policy.checkpoint={checkpoint}", f"output={output}",
    ]  # fmt: skip
    if config.policy.options.get("prompt_length", 0) > PROMPT:
        given.append(f"policy.options.prompt_length={PROMPT}")
    if config.needs.rollouts > 1:
        given.append("algorithm.rounds=2")
    if config.needs.refills:
        given.append("algorithm.filter.refills=1")
    return given


def run_two_iterations(recipe: Recipe, folder: Path, *further: str, succeeds: bool = True) -> Path:
    """Train, and check that the policy has learned something and is written; returns the run's folder. Where chance
    never `succeeds`, all rewards are alike and there is nothing to learn.
    """
    checkpoint = tiny_checkpoint(recipe, folder)
    config = configure(recipe, [*small(recipe, checkpoint, folder / "runs"), *further])
    run = train(config)
    rows = read_metrics(run)
    assert [row["iteration"] for row in rows] == [1, 2]
    assert (run / "policy" / "config.json").is_file()
    if not succeeds:
        return run
    assert sum(row["update/steps"] for row in rows) > 0
    before, after = (weights(path) for path in (checkpoint, run / "policy"))
    moved = [name for name, tensor in after.items() if name in before and not torch.equal(tensor, before[name])]
    assert any(name.startswith("language_model.") for name in moved)
    return run


def few(recipe: Recipe) -> list[str]:
    """Overrides for a simulator that takes its time: two slots, and one suite. A tiny tokenizer knows few of its words,
    and takes a token for each letter of the others.
    """
    config = configure(recipe)
    group = ["algorithm.group_size=2"] if config.needs.group_size > 1 else []
    return ["simulator.slots=2", *group, 'evaluation.suites=["train"]', "policy.options.prompt_length=256"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of a policy, in the type that it is trained in, so that rounding is no difference."""
    return load_policy(folder, device="cpu", dtype="bfloat16").state_dict()  # type: ignore[attr-defined]
