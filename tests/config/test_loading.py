"""Recipes and overrides: what they mean, and how each mistake is said."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from treadle.config import named_files
from treadle.config.describe import describe, sections, toml_text
from treadle.config.loading import _ELSEWHERE, load_recipe, read_config
from treadle.config.protocols import EvalConfig
from treadle.config.recipes import find_recipe, recipes
from treadle.config.schema import SamplingConfig, Section, TrainConfig
from treadle.config.supervised import SupervisedConfig
from treadle.errors import ConfigError


def recipe(tmp_path: Path, text: str = "") -> str:
    path = tmp_path / "some.toml"
    path.write_text(text)
    return str(path)


def message(tmp_path: Path, *overrides: str, text: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, text), overrides)
    return str(caught.value)


def test_an_empty_recipe_is_the_defaults(tmp_path):
    assert load_recipe(recipe(tmp_path)) == TrainConfig()


def test_overrides_win_over_the_recipe_and_the_last_one_wins(tmp_path):
    config = load_recipe(recipe(tmp_path, "seed = 3\n[algorithm]\ngamma = 0.5"), ["seed=4", "seed=5"])
    assert (config.seed, config.algorithm.gamma) == (5, 0.5)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("name=2024", lambda c: c.name == "2024"),
        ('name="a b"', lambda c: c.name == "a b"),
        ("device=cuda:1", lambda c: c.device == "cuda:1"),
        ("output=some/where", lambda c: c.output == Path("some/where")),
        ("algorithm.clip_high=1", lambda c: c.algorithm.clip_high == 1.0),
        ("algorithm.target_kl=none", lambda c: c.algorithm.target_kl is None),
        ("policy.statistics=none", lambda c: c.policy.statistics is None),
        ("policy.frozen_dimensions=[3, 4]", lambda c: c.policy.frozen_dimensions == (3, 4)),
        ("simulator.options.image_size=48", lambda c: c.simulator.options == {"image_size": 48}),
        ("policy.freeze_vision=false", lambda c: c.policy.freeze_vision is False),
    ],
)
def test_values_of_overrides(tmp_path, override, read):
    assert read(load_recipe(recipe(tmp_path), [override]))


def test_none_clears_what_the_recipe_set(tmp_path):
    assert (
        load_recipe(recipe(tmp_path, "[algorithm]\ntarget_kl = 0.1"), ["algorithm.target_kl=none"]).algorithm.target_kl
        is None
    )


def test_a_section_given_in_part_keeps_the_rest_of_its_default(tmp_path):
    # Sampling's own default temperature is 1, evaluation's is 0.
    in_recipe = load_recipe(recipe(tmp_path, "[evaluation.sampling]\ntop_k = 4")).evaluation.sampling
    in_override = load_recipe(recipe(tmp_path), ["evaluation.sampling.top_k=4"]).evaluation.sampling
    assert in_recipe == in_override == SamplingConfig(temperature=0.0, top_k=4)


def test_words_of_other_frameworks_lead_to_keys():
    keys = {
        key.name.rpartition(".")[2] for model in (TrainConfig, EvalConfig, SupervisedConfig) for key in describe(model)
    }
    assert _ELSEWHERE.keys().isdisjoint(keys)
    assert set(_ELSEWHERE.values()) <= keys


@given(st.sampled_from([key for key in describe(TrainConfig) if not key.open]))
def test_every_default_is_a_valid_override(key):
    assert read_config(TrainConfig, None, [f"{key.name}={key.default}"]) == TrainConfig()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algorithm.gama=0.9", "unknown key 'algorithm.gama', did you mean 'algorithm.gamma'"),
        ("gamma=0.9", "unknown key 'gamma', did you mean 'algorithm.gamma'?"),
        ("lr=1e-4", "unknown key 'lr', did you mean 'critic.learning_rate' or 'optimizer.learning_rate'?"),
        ("optimizer.lr=1e-4", "unknown key 'optimizer.lr', did you mean 'optimizer.learning_rate'?"),
        ("num_envs=8", "unknown key 'num_envs', did you mean 'simulator.slots' or 'evaluation.slots'?"),
        ("zzz=1", "unknown key 'zzz'; keys: name, output, seed"),
        ("zzz=1", "sections, with keys of their own: simulator, collection"),
        ("simulators.slots=4", "unknown key 'simulators', did you mean 'simulator'?"),
        ("critic.gamma=1", "unknown key 'critic.gamma', did you mean 'algorithm.gamma'?"),
        ("simulatr.slots=4", "unknown key 'simulatr', did you mean 'simulator'?"),
        ("critic.zzz=1", "unknown key 'critic.zzz'; keys of 'critic': kind, learning_rate"),
        ("seed=x", 'seed: found "x", allowed is integer >= 0'),
        ("seed='3'", 'seed: found "3", allowed is integer >= 0'),
        ("seed=true", "seed: found true, allowed is integer >= 0"),
        ("seed=1.5", "seed: found 1.5, allowed is integer >= 0"),
        ("iterations=0", "iterations: found 0, allowed is integer > 0"),
        ("algorithm.gamma=1.5", "algorithm.gamma: found 1.5, allowed is number > 0 and <= 1"),
        (
            "algorithm.ratio_level=tokn",
            'algorithm.ratio_level: found "tokn", allowed is "token" or "action" or "chunk"',
        ),
        ("algorithm.target_kl=abc", 'algorithm.target_kl: found "abc", allowed is number > 0 or none'),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: found nan, allowed is number > 0"),
        ("optimizer.betas=[0.9]", "found [0.9], allowed is [number"),
        ("policy.frozen_dimensions=[1, -2]", "policy.frozen_dimensions[1]: found -2, allowed is list of integer >= 0"),
        ("simulator=3", "simulator: found 3, but 'simulator' is a section; its keys: name, slots"),
        ("seed.x=1", "seed: found {x = 1}, allowed is integer >= 0"),
        ("seed", "override 'seed' is not of the form section.key=value"),
        ("=3", "override '=3' is not of the form section.key=value"),
        ("critic.warmup_iterations=100", "critic.warmup_iterations 100 must be below iterations 100"),
        ("algorithm.ratio_level=chunk", "algorithm: ratio_level 'chunk' with reward_level 'action'"),
    ],
)
def test_each_mistake_is_one_line_that_says_what_is_allowed(tmp_path, override, said):
    text = message(tmp_path, override)
    assert said in text
    assert "\n" not in text


def test_several_mistakes_are_said_together(tmp_path):
    text = message(tmp_path, "algorithm.gama=1", "nonsense", text="seed = -1\nnmae = 'x'")
    lines = text.splitlines()
    assert "4 settings" in lines[0]
    assert len(lines) == 5
    assert all(
        any(word in line for line in lines) for word in ("'algorithm.gama'", "'nonsense'", "seed: found -1", "'name'")
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"seed = = 3", "line 1, column 8"),
        (b"seed = 3\n[algorithm\n", "line 2"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_malformed_toml_names_the_file_and_the_line(tmp_path, content, said):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_runs_own_configuration_is_a_recipe(tmp_path):
    config = TrainConfig(seed=7)
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    assert load_recipe(str(path)) == config
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="no table"):
        load_recipe(str(path))


def test_unknown_recipes_suggest_and_list(tmp_path, monkeypatch):
    monkeypatch.setattr(named_files, "RECIPES", tmp_path)
    monkeypatch.setattr(metadata, "entry_points", lambda group: ())
    (tmp_path / "quickstart.toml").write_text("# A short run.\nseed = 1\n")
    assert recipes() == {"quickstart": "A short run."}
    assert load_recipe("quickstart").seed == 1
    with pytest.raises(ConfigError, match="unknown recipe 'quikstart', did you mean 'quickstart'"):
        load_recipe("quikstart")
    with pytest.raises(ConfigError, match=r"'no/such.toml' does not exist; `treadle recipes`"):
        load_recipe("no/such.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_recipe(str(tmp_path))


def test_recipes_of_other_packages(tmp_path, monkeypatch):
    """An entry names a package, with or without an __init__.py, whose folder holds recipes."""
    entries = [metadata.EntryPoint("other", "other_package.recipes", "treadle.recipes")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries if group == "treadle.recipes" else ())
    with pytest.raises(ConfigError, match=r"entry point 'other' of treadle.recipes: 'other_package.recipes' is no pac"):
        recipes()
    folder = tmp_path / "other_package" / "recipes"
    folder.mkdir(parents=True)
    (folder / "theirs.toml").write_text("# Of others.\nseed = 9\n")
    (folder / "quickstart.toml").write_text("# Not this one.\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert recipes()["theirs"] == "Of others."
    assert load_recipe("theirs").seed == 9
    assert find_recipe("quickstart").parent == named_files.RECIPES
    with pytest.raises(ConfigError, match="did you mean 'theirs'"):
        load_recipe("their")


def test_packaged_recipes_say_what_they_are():
    for name, summary in recipes().items():
        assert re.fullmatch(r"[A-Z].*[a-zA-Z.)`]\.", summary), f"{name}: no whole sentence in the first line: {summary}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("train,vision", ("train", "vision")),
        ("[train, vision]", ("train", "vision")),
        ('["train", "vision"]', ("train", "vision")),
        ("train", ("train",)),
    ],
)
def test_lists_need_no_quotes(text, found):
    assert load_recipe("quickstart", [f"evaluation.suites={text}"]).evaluation.suites == found


def test_lists_of_numbers_need_no_brackets():
    assert load_recipe("quickstart", ["policy.frozen_dimensions=3,4"]).policy.frozen_dimensions == (3, 4)
    assert load_recipe("quickstart", ["policy.frozen_dimensions=3"]).policy.frozen_dimensions == (3,)
    assert load_recipe("quickstart", ["policy.frozen_dimensions=[]"]).policy.frozen_dimensions == ()
    with pytest.raises(ConfigError, match=r"policy.frozen_dimensions.*found \"a\""):
        load_recipe("quickstart", ["policy.frozen_dimensions=3,a"])


class Inner(Section):
    """Within."""

    size: Annotated[int, Field(gt=1)]
    """How large."""
    share: float = 0.5
    """How much."""


class Outer(Section):
    """Around."""

    inner: Inner = Inner(size=3, share=0.25)
    label: str | None = None
    """What it is called."""


def test_describe_shows_the_sections_default_not_its_classes():
    rows = [(key.name, key.type, key.default, key.doc) for key in describe(Outer)]
    assert rows == [
        ("inner.size", "integer > 1", "3", "How large."),
        ("inner.share", "number", "0.25", "How much."),
        ("label", "text or none", "none", "What it is called."),
    ]
    assert sections(Outer) == {"": "Around.", "inner": "Within."}


def test_any_configuration_class_can_be_read():
    assert read_config(Outer, None, ["inner.size=4"]).inner == Inner(size=4, share=0.25)
    with pytest.raises(ConfigError, match=r"inner.size: found 1, allowed is integer > 1"):
        read_config(Outer, None, ["inner.size=1"])


def test_a_key_without_default_must_be_given():
    with pytest.raises(ConfigError, match="size: must be given, allowed is integer > 1"):
        read_config(Inner, None)


def test_every_setting_is_documented():
    assert [key.name for key in describe(TrainConfig) if not key.doc] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "none"),
        ('a"b', '"a\\"b"'),
        ((1, "x"), '[1, "x"]'),
        ({"a": 1}, "{a = 1}"),
        (1e-4, "0.0001"),
    ],
)
def test_values_are_shown_as_they_are_written(value, text):
    assert toml_text(value) == text


def test_reading_a_configuration_imports_neither_torch_nor_a_simulator():
    code = (
        "import sys; from treadle.config.loading import read_config; from treadle.config.schema import TrainConfig;"
        "import treadle.config.run_directory, treadle.cli; read_config(TrainConfig, None, ['seed=3']);"
        "print({'torch', 'mujoco', 'transformers', 'gymnasium', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
