"""Protocols: each can be read and names what there is; published figures are those of the publications."""

import inspect
from pathlib import Path

import pytest

from treadle.config import named_files
from treadle.config.protocols import Protocol, find_protocol, protocols, read_protocol
from treadle.errors import ConfigError
from treadle.plugins import import_callable
from treadle.policies.prismatic.openvla_oft import OpenVLAOFTConfig
from treadle.simulators.build import find_simulator
from treadle.simulators.libero.suites import STANDARD
from treadle.simulators.maniskill.put_on_plate.settings import SETTINGS
from treadle.simulators.tabletop import Tabletop

NAMES = sorted(protocols())
SUITES = {
    "tabletop": {*Tabletop(1).suites()},
    "libero": {*STANDARD},
    "maniskill": {"train", *SETTINGS},
    "robotwin": {"train"},
}
SECTIONS = ("policy", "simulator", "evaluation")
WANTED = {
    "openvla-oft/libero-spatial", "openvla-oft/libero-object", "openvla-oft/libero-goal", "openvla-oft/libero-10",
    "rlinf/libero-130", "rlinf/maniskill-put-on-plate", "rl4vla/maniskill-put-on-plate", "treadle/tabletop",
    *(f"simplevla-rl/libero-{suite}" for suite in ("spatial", "object", "goal", "10")),
    *(
        f"{who}/robotwin-{task}"
        for who in ("rlinf", "simplevla-rl")
        for task in (
            "beat_block_hammer", "pick_dual_bottles", "place_empty_cup", "place_container_plate", "move_can_pot",
            "lift_pot", "handover_block",
        )
    ),
}  # fmt: skip


def test_what_is_offered():
    assert set(NAMES) >= WANTED


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_names_what_there_is(name):
    protocol = find_protocol(name)
    config = protocol.config()
    simulator, evaluation = config.simulator, config.evaluation
    accepted = inspect.signature(
        import_callable("simulator.name", find_simulator(simulator.name)[0], "class")
    ).parameters
    assert simulator.options.keys() <= accepted.keys()
    assert config.policy.options.keys() <= OpenVLAOFTConfig.__dataclass_fields__.keys()
    assert {*evaluation.suites} <= SUITES[simulator.name]
    assert evaluation.horizons.keys() <= {*evaluation.suites}
    assert {suite for suites in protocol.columns.values() for suite in suites} <= {*evaluation.suites}
    assert protocol.summary.endswith(".")
    assert protocol.departures(config.model_dump(mode="json", include={*SECTIONS})) == []


def horizons(name: str) -> list[int]:
    config = find_protocol(name).config()
    return [config.evaluation.horizon_of(suite, config.simulator.horizon) for suite in config.evaluation.suites]


def test_published_horizons():
    suites = ("spatial", "object", "goal", "10")
    assert [horizons(f"openvla-oft/libero-{suite}") for suite in suites] == [[220], [280], [300], [520]]
    assert [horizons(f"simplevla-rl/libero-{suite}") for suite in suites] == [[512]] * 4
    assert horizons("rlinf/libero-130") == [512] * 5
    assert horizons("rlinf/robotwin-pick_dual_bottles") == [100]
    assert horizons("rlinf/robotwin-handover_block") == [400]
    assert set(horizons("rl4vla/maniskill-put-on-plate")) == {80}


def test_a_chunk_is_one_motion_in_both_published_evaluations_of_robotwin():
    for who in ("rlinf", "simplevla-rl"):
        config = find_protocol(f"{who}/robotwin-lift_pot").config()
        assert config.simulator.options["path_actions"] == config.policy.options["chunk"] == 25


def test_published_sampling():
    for start, temperature in (
        ("openvla-oft/", 0), ("simplevla-rl/", 0), ("rlinf/libero", 1.6), ("rlinf/maniskill", 0.6), ("rl4vla/", 0.6),
        ("rlinf/robotwin", 0),
    ):  # fmt: skip
        found = [find_protocol(name).config().evaluation.sampling for name in NAMES if name.startswith(start)]
        assert {sampling.temperature for sampling in found} == {temperature}


def test_published_figures_are_those_of_the_tables():
    libero = {row.model: row for row in find_protocol("rlinf/libero-130").published}
    base, trained = libero["OpenVLA-OFT (Base)"], libero["OpenVLA-OFT (RLinf GRPO)"]
    assert [*base.success.values()] == [72.18, 71.48, 64.06, 48.44, 70.97, 65.43]
    assert [*trained.success.values()] == [99.40, 99.80, 98.79, 93.95, 98.59, 98.11]
    # A greedy base stands beside a sampled model.
    assert (base.sampling, trained.sampling) == ("greedy", "sampled at 1.6")
    (own,) = [row for row in find_protocol("rl4vla/maniskill-put-on-plate").published if row.model == "RL4VLA (PPO)"]
    assert [*own.success.values()] == [93.75, 80.47, 75.00, 81.77]
    hammer = find_protocol("rlinf/robotwin-beat_block_hammer").published
    assert [row.success["success"] for row in hammer] == [10.15, 96.09]


def test_settings_change_by_key_and_are_told():
    protocol = find_protocol("openvla-oft/libero-spatial")
    config = protocol.config(
        ["evaluation.episodes=20", "simulator.options.render=fast", "policy.dtype=bfloat16", "evaluation.slots=4"]
    )
    assert config.simulator.options["states"] == "published"
    changed = protocol.departures(config.model_dump(mode="json", include={*SECTIONS}))
    # Slots say how it is played, not what is played.
    assert sorted(changed) == [
        ("evaluation.episodes", 500, 20),
        ("policy.dtype", "auto", "bfloat16"),
        ("simulator.options.render", "published", "fast"),
    ]


def test_options_beside_a_protocol_without_any_are_told():
    protocol = find_protocol("treadle/tabletop")
    config = protocol.config(["simulator.options.reward=sparse"])
    changed = protocol.departures(config.model_dump(mode="json", include={*SECTIONS}))
    assert changed == [("simulator.options.reward", None, "sparse")]


def test_a_setting_that_is_not_there_is_an_error():
    with pytest.raises(ConfigError, match=r"unknown key 'evaluation.episods', did you mean 'evaluation.episodes'"):
        find_protocol("treadle/tabletop").config(["evaluation.episods=3"])


def test_names_that_are_not_there():
    with pytest.raises(ConfigError, match=r"unknown protocol 'rlinf/libero-13', did you mean 'rlinf/libero-130'"):
        find_protocol("rlinf/libero-13")
    with pytest.raises(ConfigError, match=r"protocol 'mine.toml' does not exist"):
        find_protocol("mine.toml")
    with pytest.raises(ConfigError, match="unknown protocol 'rlinf/_robotwin'"):
        find_protocol("rlinf/_robotwin")


ROW = "# Mine.\ncolumns = { a = ['train'] }\n[[published]]\nmodel = 'm'\nsampling = 's'\nsource = 'x'\n"


def written(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Mine.\ncolums = 3\n", "mine.toml: colums: .*; keys of a protocol: name, summary, settings, columns"),
        ("# Mine.\nname = 'other'\n", "mine.toml: found 'name', which the file's own place and first line say"),
        (ROW + "success = { b = 3 }\n", "mine.toml: published figures of 'b', but columns has a"),
        (ROW + "success = { a = 300 }\n", "mine.toml: published.0.success.a"),
        ("# Mine.\nextends = 'absent'\n", "mine.toml: extends: found 'absent', but there is no .*absent.toml"),
        ("# Mine.\nextends = 'mine'\n", "mine.toml: extends: found .mine., which comes back to itself"),
        ("# Mine.\nx = \n", "mine.toml: not valid TOML"),
    ],
)
def test_files_that_are_wrong(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        find_protocol(str(written(tmp_path, text)))


def test_a_file_of_ones_own_that_extends_another(tmp_path):
    written(tmp_path, "# Below.\n[settings.simulator]\nhorizon = 7\noptions = { a = 1, b = 2 }\n", "below")
    path = written(tmp_path, "# Mine.\nextends = 'below'\n[settings.simulator]\noptions = { b = 3 }\n")
    found = find_protocol(str(path))
    assert (found.name, found.summary) == ("mine", "Mine.")
    assert found.settings == {"simulator": {"horizon": 7, "options": {"a": 1, "b": 3}}}
    with pytest.raises(ConfigError, match=r"protocol 'mine': .*simulator.horizn"):
        Protocol(name="mine", summary="", settings={"simulator": {"horizn": 3}}).config()


def test_protocols_of_other_packages(tmp_path, monkeypatch):
    (tmp_path / "lab").mkdir()
    written(tmp_path / "lab", "# Ours.\n", "ours")
    monkeypatch.setattr(named_files, "_offered", lambda group: [tmp_path] if group == "treadle.protocols" else [])
    assert find_protocol("lab/ours") == read_protocol("lab/ours", tmp_path / "lab" / "ours.toml")
    assert "lab/ours" in protocols()
