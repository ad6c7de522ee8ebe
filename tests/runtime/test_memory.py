"""The memory of a run, against numbers worked by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from treadle.commands.plan import plan_run
from treadle.config.loading import read_config
from treadle.config.schema import TrainConfig
from treadle.policies.footprint import Held, copies, hold, keep, peak

WEIGHTS, GRADIENTS, MASTER, MOMENTS = "weights", "gradients", "float32 master", "AdamW moments"


def layer(dtype: torch.dtype, trained: bool = True) -> nn.Parameter:
    """10 rows of 100 numbers."""
    return nn.Parameter(torch.empty(10, 100, dtype=dtype, device="meta"), requires_grad=trained)


def test_a_layer_in_one_process() -> None:
    half = keep([hold("w", layer(torch.bfloat16))])
    assert [half[part] for part in (WEIGHTS, GRADIENTS, MASTER, MOMENTS)] == [2000, 2000, 4000, 8000]
    assert copies([hold("w", layer(torch.bfloat16))]) == 2000, "4 bytes of a gradient in place of 2"
    single = keep([hold("w", layer(torch.float32))], average=True)
    assert [single[part] for part in (WEIGHTS, GRADIENTS, MASTER, MOMENTS)] == [4000, 4000, 0, 8000]
    assert single["weight average"] == 4000
    assert copies([hold("w", layer(torch.float32))]) == 0
    frozen = keep([hold("w", layer(torch.bfloat16, trained=False))])
    assert sum(frozen.values()) == frozen[WEIGHTS] == 2000


def test_a_layer_on_three_ranks() -> None:
    """Ten rows are four, four and two, and weights and gradients have room for four everywhere."""
    shards = [hold("w", layer(torch.bfloat16), rank, 3) for rank in range(3)]
    assert [shard.own for shard in shards] == [400, 400, 200]
    assert [keep([shard])[WEIGHTS] for shard in shards] == [800, 800, 800]
    assert [keep([shard])[GRADIENTS] for shard in shards] == [800, 800, 800]
    assert [keep([shard])[MASTER] for shard in shards] == [1600, 1600, 800]
    assert [keep([shard])[MOMENTS] for shard in shards] == [3200, 3200, 1600]
    assert [copies([shard], 3) for shard in shards] == [800, 800, 0]
    # Two rows on three ranks: the last has none.
    few = nn.Parameter(torch.empty(2, 5, device="meta"))
    assert [hold("w", few, rank, 3).own for rank in range(3)] == [5, 5, 0]


def test_replicas_sum_in_float32() -> None:
    assert copies([hold("w", layer(torch.bfloat16))], ranks=3) == 8000
    assert copies([hold("w", layer(torch.float32))], ranks=3) == 4000


def test_adapters_are_counted_apart() -> None:
    """Rank 4 on 10 by 100: 4 * 110 numbers in float32, over frozen weights."""
    down, up = (nn.Parameter(torch.empty(*shape, device="meta")) for shape in ((4, 100), (10, 4)))
    names = {"w.base_layer.weight": layer(torch.bfloat16, trained=False), "w.lora_A.x": down, "w.lora_B.x": up}
    parts = keep(hold(name, parameter) for name, parameter in names.items())
    assert (parts[WEIGHTS], parts["adapters"], parts[GRADIENTS]) == (2000, 1760, 1760)
    assert (parts[MASTER], parts[MOMENTS]) == (0, 3520)


def test_a_peak_is_what_lasts_and_the_greatest_moment() -> None:
    assert peak({"weights": 5}, {"activations": 3}, {"copies": 4}) == {"weights": 5, "copies": 4}
    assert keep([Held(1, 1, 4, trained=False)])[WEIGHTS] == 4


def planned(*overrides: str, **arguments: Any) -> Any:
    settings = ["policy.kind=openvla_oft", "policy.dtype=bfloat16", "simulator.slots=32", *overrides]
    return plan_run(read_config(TrainConfig, None, settings), size="tiny", **arguments)


def test_ranks_that_play_gather_the_whole() -> None:
    found = planned("placement.sharding=full", devices=3)
    whole = planned(devices=1).plan.processes[0]
    for process in found.plan.processes:
        assert process.play["weights gathered"] == whole.play["weights"]
        assert whole.train["weights"] / 3 < process.train["weights"] < 0.4 * whole.train["weights"]
        assert process.train[GRADIENTS] < 0.4 * whole.train[GRADIENTS]
    states = [process.train[MOMENTS] for process in found.plan.processes]
    assert 0 <= sum(states) - whole.train[MOMENTS] < 64, "scalars alone are on every rank"


def test_offload_is_for_play_on_cards_alone() -> None:
    kept, offloaded = (planned(f"placement.offload={x}", devices=1).plan.processes[0] for x in ("false", "true"))
    assert kept.play[MOMENTS] == kept.train[MOMENTS] > 0
    assert offloaded.play[MOMENTS] == offloaded.play[MASTER] == 0
    assert offloaded.train == kept.train
    here = planned("placement.offload=true", "device=cpu").plan.processes[0]
    assert here.play[MOMENTS] == here.train[MOMENTS]


def test_a_player_alone_has_weights_alone() -> None:
    found = planned("placement.simulate=0", "placement.generate=0", "placement.train=1-2", devices=3)
    player, *ranks = found.plan.processes
    assert player.place.name == "player 0"
    assert not player.train
    assert {part for part, size in player.play.items() if size} == {"weights", "activations"}
    assert len(ranks) == 2
    assert not any(rank.play.get("activations") for rank in ranks)


def test_a_reference_and_an_average_come_on_top() -> None:
    found = planned("algorithm.reference.coefficient=0.1", "optimizer.average=0.9", devices=1).plan.processes[0]
    assert found.train["frozen reference"] == found.play["frozen reference"] > 0
    trained = found.train[MOMENTS] / 8
    assert found.train["weight average"] == 4 * trained


def test_a_player_beside_training_has_older_weights_of_its_own() -> None:
    none, stream, late = (planned(f"overlap={x}", "device=cpu").plan.processes[0] for x in ("none", "stream", "async"))
    acting = none.play["activations"]
    assert stream.train == none.train | {
        "activations": none.train["activations"] + acting,
        "older weights that play": 0,
    }
    # One that acts, two that wait.
    assert late.train["older weights that play"] == 3 * none.train[GRADIENTS]
    card = planned("overlap=async", devices=1).plan.processes[0]
    assert card.train["older weights that play"] == card.train[GRADIENTS]


@pytest.mark.parametrize("recompute", ["true", "false"])
def test_activations_grow_with_the_micro_batch(recompute: str) -> None:
    key = f"policy.gradient_checkpointing={recompute}"
    one, four = (planned(key, f"algorithm.micro_batch={n}", devices=1).plan for n in (1, 4))
    assert four.activations.training(4, recompute == "true") == 4 * one.activations.training(1, recompute == "true")


def test_what_does_not_fit_is_told_how_to() -> None:
    found = planned("policy.freeze_vision=false", "algorithm.micro_batch=64", devices=2, device_gb=0.005)
    said = " ".join(found.advice)
    for word in ("gradient_checkpointing=true", "policy.lora.rank=32", "more collection.lanes"):
        assert word in said, said
    assert not planned(devices=2).advice
