"""The benchmarks of lanes run, and write what they promise. Their figures are for a machine that does nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import balance, collect, exchange
from treadle.config.supervised import TinyModelConfig
from treadle.cores import usable_cores
from treadle.errors import ConfigError
from treadle.simulators.factory import SimulatorFactory
from treadle.workers.crew import CrewPlan

PINS = pytest.mark.skipif(len(usable_cores()) < 2, reason="pins simulator and policy to a core each")
SMALL = ("simulator.slots=4", "decisions=4", "collection.lanes=2")
PACED = "benchmarks.paced:PacedSimulator"


def measure(pair: str, file: Path, overrides: Sequence[str] = (), **options: Any) -> dict[str, Any]:
    """What the file says, of a short run in threads."""
    result = collect.run(pair, file, [*SMALL, *overrides], kind="threads", seconds=0, **options)
    written = json.loads(file.read_text())
    assert written.items() >= result.items()
    assert (written["slots"], written["decisions"], written["lanes"], written["repeats"]) == (4, 4, 2, 3)
    for name in ("lockstep_seconds", "lanes_seconds", "ratio", "bound_ratio", "share_of_bound"):
        assert written[name] > 0
    assert 1 <= written["bound_ratio"] <= 2
    # A smaller and the larger role of 8 lane-decisions: 1 / (1 + less / more / 8).
    assert 1 / (1 + 1 / 8) - 1e-9 <= written["reachable_share"] <= 1
    return written


@PINS
def test_collect(tmp_path: Path):
    straggling = ("simulator.slots=2", "collection.lanes=2", "collection.workers=2", "decisions=4")
    assert measure("synthetic", tmp_path / "collect.json", straggling=straggling)["straggler_ratio"] > 0


@PINS
def test_collect_plays_a_simulator_by_a_random_policy_that_fits_it(tmp_path: Path):
    written = measure(PACED, tmp_path / "collect.json", ["simulator.options.image_size=32"], size="64x2")
    assert written["policy"] == "openvla_oft 64x2 with random weights"
    assert written["simulator"]["name"] == PACED
    assert (written["size"], written["chunk"]) == ("64x2", TinyModelConfig().chunk)


def test_a_simulator_that_costs_nothing_gets_the_smallest_policy():
    factory = SimulatorFactory(PACED, {"horizon": 100, "image_size": 32})
    config = balance.random_policy(CrewPlan(factory, 2), TinyModelConfig(chunk=3), None, ()).config
    assert (config.width, config.text["num_hidden_layers"]) == (balance.WIDTHS[0], balance.SHALLOWEST)
    assert (config.chunk, config.action_dim, config.proprioception_dim, config.image_size) == (3, 2, 16, (32, 32))


def test_a_decoder_takes_as_long_as_it_shall():
    """Layers of width w take w milliseconds each, beside 10 that the rest takes."""

    def measure(width: int, layers: int) -> float:
        return (10 + width * layers) / 1000

    sizes = [balance.size_that_takes(seconds, measure) for seconds in (0.0, 0.266, 1.0, 99.0)]
    assert sizes == [(64, 1), (64, 4), (128, 8), (1024, 12)]


@pytest.mark.parametrize("size", ["64", "x2", "64x", "64x0", "0x1", "65x2", "64x2x2", "wide"])
def test_a_size_is_width_and_layers(size):
    with pytest.raises(ConfigError, match="WIDTHxLAYERS"):
        balance.parse_size(size)
    assert balance.parse_size("128x3") == (128, 3)


def test_exchange(tmp_path: Path):
    rows = exchange.run(tmp_path / "exchange.json", slots=4, table=(), splits=((2, 2),), seconds=0.0)
    written = json.loads((tmp_path / "exchange.json").read_text())
    assert {"in_process_ms", "worker_ms", "frames_in_process_ms", "frames_worker_ms"} <= written.keys()
    assert len(written["exchanges"]) == len(rows) == 2 * 2 + 1 + 2
    assert {(row.lanes, row.workers) for row in rows} == {(1, 1), (2, 2)}
