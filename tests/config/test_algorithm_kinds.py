"""Each algorithm has settings of its own, which `algorithm.kind` names: built in, installed, or one's own class."""

import json
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from treadle.config.algorithm import AlgorithmConfig, DataNeeds, find_algorithm, known_algorithms
from treadle.config.loading import load_recipe, read_config
from treadle.config.on_policy import GRPOConfig, PPOConfig
from treadle.config.run_directory import claim_run_directory, hold_run_directory
from treadle.config.schema import CriticConfig, TrainConfig
from treadle.config.section import Section
from treadle.errors import ConfigError, OutputError

OWN = f"{__name__}:OwnConfig"


class Exploration(Section):
    """How actions are explored."""

    share: float = 0.1
    """Of random actions."""
    decay: float = 1.0
    """Per iteration."""


class OwnConfig(AlgorithmConfig):
    """Settings of somebody else's algorithm."""

    implementation: ClassVar[str] = "nowhere.that_is_imported:Own"
    tau: float = 0.5
    """How fast the target follows."""
    exploration: Exploration = Exploration(share=0.2)

    @property
    def needs(self) -> DataNeeds:
        return DataNeeds(next_inputs=True)

    def check(self, config: TrainConfig) -> None:
        if config.critic.kind == "privileged":
            raise ValueError("critic.kind 'privileged' with algorithm.kind 'own': it has critics of its own")


class NamedConfig(OwnConfig):
    kind: Literal["own"] = "own"


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[OwnConfig.__module__])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, importable: None) -> None:
    entries = (metadata.EntryPoint("own", f"{__name__}:NamedConfig", "treadle.algorithms"),)
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries if group == "treadle.algorithms" else ())


def problem(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(TrainConfig, None, overrides)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "found"), [("ppo", PPOConfig), ("grpo", GRPOConfig)])
def test_the_kind_of_a_recipe_or_an_override_chooses_the_class(tmp_path: Path, kind: str, found: type):
    path = tmp_path / "recipe.toml"
    path.write_text(f'[algorithm]\nkind = "{kind}"\nepochs = 3')
    assert type(load_recipe(str(path)).algorithm) is found
    assert type(load_recipe(str(path), ["algorithm.kind=ppo"]).algorithm) is PPOConfig
    assert load_recipe(str(path), ["algorithm.kind=grpo"]).algorithm == GRPOConfig(epochs=3)
    assert read_config(TrainConfig, None, [f'algorithm={{kind = "{kind}"}}']) == TrainConfig(algorithm=found())


def test_what_rollouts_must_hold_follows_from_algorithm_and_critic():
    assert TrainConfig().needs == DataNeeds(True, 1, values=True, values_per_action=True, keep_final="truncated")
    assert TrainConfig(algorithm=PPOConfig(bootstrap="always")).needs.keep_final == "ended"
    grpo = TrainConfig(algorithm=GRPOConfig(group_size=4)).needs
    assert (grpo.partial_reset, grpo.group_size, grpo.values, grpo.keep_final) == (False, 4, False, "none")
    own = TrainConfig(critic=CriticConfig(kind="none"), algorithm=PPOConfig(estimator="my.module:function"))
    assert own.algorithm.needs.values
    assert (own.needs.values, own.needs.keep_final) == (False, "none")


@pytest.mark.usefixtures("importable")
def test_settings_of_ones_own_by_module_and_class(tmp_path: Path):
    config = read_config(TrainConfig, None, [f"algorithm.kind={OWN}", "algorithm.exploration.decay=0.5", "name=a"])
    assert config.algorithm == OwnConfig(kind=OWN, exploration=Exploration(share=0.2, decay=0.5))
    assert OwnConfig().kind == OWN, "without a name of its own"
    assert config.needs == DataNeeds(next_inputs=True)
    assert not config.has_critic
    # The run's file holds all of it, and reads back as the same configuration.
    config = config.model_copy(update={"output": tmp_path})
    with hold_run_directory(config, print) as folder:
        claim_run_directory(folder, config)
        (folder / "metrics.jsonl").write_text("{}")
    assert json.loads((folder / "config.json").read_text())["algorithm"]["tau"] == 0.5
    assert read_config(TrainConfig, folder / "config.json") == config
    other = config.model_copy(update={"algorithm": OwnConfig(tau=0.25)})
    with (
        pytest.raises(OutputError, match=r"algorithm.tau is 0.5 there and 0.25 here"),
        hold_run_directory(other, print),
    ):
        pass
    assert type(config) is TrainConfig
    assert pickle.loads(pickle.dumps(TrainConfig(algorithm=GRPOConfig()))) == TrainConfig(algorithm=GRPOConfig())


@pytest.mark.usefixtures("installed")
def test_settings_of_an_installed_package():
    assert {"own", "ppo", "grpo"} == known_algorithms().keys()
    config = read_config(TrainConfig, None, ["algorithm.kind=own", "algorithm.tau=1"])
    assert config.algorithm == NamedConfig(tau=1)
    assert problem("algorithm.kind=onw").startswith("algorithm.kind: unknown algorithm 'onw', did you mean 'own'?")


@pytest.mark.usefixtures("importable")
def test_mistakes_in_them_are_said_like_all_others():
    kind = f"algorithm.kind={OWN}"
    assert "unknown key 'algorithm.tua', did you mean 'algorithm.tau'?" in problem(kind, "algorithm.tua=1")
    assert "unknown key 'algorithm.gamma'" in problem(kind, "algorithm.gamma=1")
    assert 'algorithm.tau: found "x", allowed is number' in problem(kind, "algorithm.tau=x")
    assert "it has critics of its own" in problem(kind, "critic.kind=privileged")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gpro", "unknown algorithm 'gpro', did you mean 'grpo'?; known: "),
        ("3", "algorithm.kind: found 3, allowed is text"),
        ("no.module:Config", "algorithm.kind: cannot import 'no.module:Config'"),
        ("treadle.errors:ConfigError", "'treadle.errors:ConfigError' is no subclass of treadle.config.algorithm"),
        ("treadle.config.algorithm:AlgorithmConfig", "with an `implementation`"),
    ],
)
def test_a_kind_that_names_no_settings(kind: str, said: str):
    assert said in problem(f"algorithm.kind={kind}")


def test_the_algorithms_own_code_is_not_imported_with_its_settings():
    code = (
        "import sys; from treadle.config.loading import read_config; from treadle.config.schema import TrainConfig;"
        "config = read_config(TrainConfig, None, ['algorithm.kind=grpo']); print(config.algorithm.implementation,"
        " {'torch', 'treadle.training'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "treadle.training.on_policy.ppo:PPO set()"
    assert find_algorithm("grpo") is GRPOConfig
