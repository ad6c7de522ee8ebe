"""The benchmark of simulators runs, and writes what it promises."""

import json
from pathlib import Path

import pytest

from treadle.benchmarks import simulator
from treadle.errors import ConfigError


@pytest.mark.integration
def test_simulator(tmp_path: Path):
    file = tmp_path / "bench.json"
    simulator.run("tabletop", file, slots=[1, 3], threads=[2], seconds=0)
    written = json.loads(file.read_text())
    own, bare = written["control_steps_per_second"], written["bare_control_steps_per_second"]
    assert written["overhead_share"] == pytest.approx(bare / own - 1)
    assert [(row["slots"], row["threads"], row["processes"]) for row in written["measurements"]] == [
        (1, 2, 0),
        (3, 2, 0),
    ]
    assert written["checkpoint"] == "tabletop-base"
    assert all(row["policy_forward_seconds"] > 0 for row in written["measurements"])
    assert all(row["without_rendering"] > 0 and row["frame_per_step"] > 0 for row in written["measurements"])


def test_settings_of_the_simulator_alone_are_taken():
    with pytest.raises(ConfigError, match="policy"):
        simulator.run("tabletop", None, overrides=["policy.kind=openvla"])
    with pytest.raises(ConfigError, match="image_sise"):
        simulator.run("tabletop", None, overrides=["simulator.options.image_sise=64"])
