"""Updates of a sharded policy are those of one process that holds it whole."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from torch import Tensor

from rank_samples import Case, Result, assert_same_update, play
from rounding import HARDWARE
from shard_samples import (
    act,
    begin,
    make_adapted,
    make_cases,
    make_resumable,
    plain_update,
    resume,
    run_shards,
    undivided_update,
)
from treadle.errors import ConfigError
from treadle.runtime.weights import trained_state
from treadle.training.ranks import ALONE

pytestmark = pytest.mark.integration

NEAR = 0.1 if HARDWARE else 1e-2
"""Distance of what is the same but for the rounding of bfloat16."""


@dataclass
class Played:
    """What three spawned ranks found, and the cases."""

    folder: Path
    cases: dict[str, Case]
    ranks: list[dict[str, Any]]
    one: dict[str, Any]
    """What one process found that trained, saved and went on."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    folder = tmp_path_factory.mktemp("shards")
    cases = make_cases(tmp_path_factory.mktemp("tokenizer"))
    torch.save(cases, folder / "cases.pt")
    one = begin(make_resumable(cases["value head"]), ALONE, folder / "one")
    torch.multiprocessing.spawn(run_shards, (3, folder), 3)
    ranks = [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(3)]
    return Played(folder, cases, ranks, one)


@pytest.mark.parametrize("name", ["value head", "density"])
def test_three_ranks_make_the_update_of_one(played: Played, name: str):
    """Minibatches do not divide, and one rank has none of some of them."""
    case = played.cases[name]
    case = replace(case, iterations=case.iterations[-1:])
    assert_same_update([each["all"][name] for each in played.ranks], play(case, case.rollouts))


def test_two_ranks_make_five_updates_of_one(played: Played):
    case = played.cases["value head"]
    assert_same_update([each["two"]["value head"] for each in played.ranks[:2]], play(case, case.rollouts))


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Of all tensors together, as a share of the wanted ones' norm."""
    one, other = (torch.cat([x.float().flatten() for x in tensors]) for tensors in (found, wanted))
    return float((one - other).norm() / other.norm())


def test_bfloat16(played: Played):
    """Five updates by two ranks, and one by three, of which one has nothing: gradients differ as bfloat16 rounds."""
    case = played.cases["bfloat16"]
    five, once = (
        play(replace(case, iterations=which), case.rollouts) for which in (case.iterations, case.iterations[-1:])
    )
    found: list[Result] = [each["two"]["bfloat16"] for each in played.ranks[:2]]
    found += [each["all"]["bfloat16"] for each in played.ranks]
    assert [len(result.gradients) for result in found] == [10, 10, 2, 2, 2]
    for result, alone in zip(found, [five, five, once, once, once], strict=True):
        for step, wanted in zip(result.gradients, alone.gradients, strict=True):
            assert distance(step, wanted) < 0.05
        for metrics, wanted in zip(result.metrics, alone.metrics, strict=True):
            for name in ("update/policy_loss", "update/gradient_norm", "update/entropy", "update/reference_kl"):
                assert metrics[name] == pytest.approx(wanted[name], rel=0.03, abs=3e-3), name
        assert {x.dtype for x in result.parameters.values()} == {torch.bfloat16}
    for name, parameter in found[0].parameters.items():
        assert torch.equal(parameter, found[1].parameters[name])


def test_an_algorithm_that_knows_no_shards(played: Played):
    wanted = plain_update(played.cases["value head"], ALONE)
    for each in played.ranks[:2]:
        assert each["plain"].keys() == wanted.keys()
        assert all((each["plain"][name] - x).abs().max() <= 1e-4 for name, x in wanted.items())
    moved = played.cases["value head"].policy.state_dict()
    assert distance([wanted["language_model.lm_head.weight"]], [moved["language_model.lm_head.weight"]]) > 1e-3


def test_a_policy_without_units(played: Played):
    """It is gathered as a whole, and its scalar has gradients that are summed and clipped with the others."""
    wanted = undivided_update(ALONE)
    assert wanted["gain"].item() != pytest.approx(0.5, abs=1e-3)
    for each in played.ranks:
        assert each["undivided"].keys() == wanted.keys()
        for name, x in wanted.items():
            torch.testing.assert_close(each["undivided"][name], x, atol=1e-5, rtol=1e-4)


def test_adapters_on_replicas(played: Played):
    case = make_adapted(played.cases["value head"])
    alone = play(case, case.rollouts)
    assert_same_update([each["adapters"] for each in played.ranks[:2]], alone)
    assert all(".lora_" in name or name.startswith(("value_head", "proprio")) for name in alone.parameters)


def assert_near(found: dict[str, list[Tensor]], wanted: dict[str, list[Tensor]], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for part, tensors in wanted.items():
        assert tensors
        assert [x.shape for x in found[part]] == [x.shape for x in tensors]
        assert distance(found[part], tensors) <= tolerance, part


def test_a_checkpoint_of_two_shards_goes_on_everywhere(played: Played):
    """Masters, moments and the average are those of the run that was not stopped."""
    case = make_resumable(played.cases["value head"])
    wanted = played.ranks[0]["begun"]["held"]
    for each in played.ranks[:2]:
        assert_near(each["same"], wanted, 0.0)
        assert_near(each["replicas"], wanted, NEAR)
        assert_near(each["from one"], played.one["held"], NEAR)
    for each in played.ranks:
        assert_near(each["three"], wanted, NEAR)
    assert_near(resume(case, ALONE, played.folder / "shards"), wanted, NEAR)
    assert (played.one["offloaded"], played.ranks[0]["begun"]["offloaded"]) == (False, True)
    assert distance(wanted["masters"], played.ranks[0]["begun"]["saved"]["masters"]) > 1e-2


def test_files_of_a_checkpoint(played: Played):
    checkpoint = played.folder / "shards" / "iteration-000005"
    names = {path.name for path in checkpoint.iterdir()}
    whole = {"checksums.json", "policy", "trainer.pt"}
    assert names == {*whole, *(f"trainer-0000{rank}-of-00002.safetensors" for rank in (1, 2))}
    assert {path.name for path in (played.folder / "one" / "iteration-000005").iterdir()} == whole
    sizes = [path.stat().st_size for path in checkpoint.glob("*.safetensors")]
    assert max(sizes) < 1.3 * min(sizes)
    # Nothing that is divided is in the file of rank 0.
    assert (checkpoint / "trainer.pt").stat().st_size < 0.3 * min(sizes)


def test_a_saved_policy_is_whole(played: Played):
    """It has the files and the types of one process's; the last one is the average of weights."""
    one, shards = (load_file(played.folder / name / "policy" / "model.safetensors") for name in ("one", "shards"))
    assert {name: (x.shape, x.dtype) for name, x in one.items()} == {
        name: (x.shape, x.dtype) for name, x in shards.items()
    }
    assert distance(list(shards.values()), [one[name] for name in shards]) < 2 * NEAR


def test_published_weights(played: Played):
    first, second = (each["begun"]["published"] for each in played.ranks[:2])
    wanted = trained_state(make_resumable(played.cases["value head"]).policy)
    assert second == {}
    assert {name: x.shape for name, x in first.items() if name in wanted} == {n: wanted[n].shape for n in first}
    held = played.ranks[0]["begun"]["held"]["parameters"]
    assert sorted(x.sum().item() for x in first.values()) == sorted(x.sum().item() for x in held)


def test_ranks_act_alone_while_weights_are_gathered(played: Played):
    policy: Any = played.cases["value head"].policy
    for rank, each in enumerate(played.ranks):
        play = each["play"]
        assert len(play["alone"]) == rank + 1
        assert all(torch.equal(found, act(policy, seed)) for seed, found in enumerate(play["alone"]))
        assert torch.equal(play["together"], act(policy, 0))
        assert torch.equal(play["again"], act(policy, 2))
        assert play["resharded"]
    # One tower, projector, two layers, two heads and the rest.
    assert [each["play"]["units"] for each in played.ranks] == [7] * 3
    rows = sum(len(parameter) for parameter in policy.parameters())
    assert sum(each["play"]["rows"] for each in played.ranks) == rows


def test_faults_are_told_by_all_ranks(played: Played):
    for rank, each in enumerate(played.ranks):
        assert each["gradient"].startswith("DivergenceError: gradient of the policy, ")
        assert each["gradient"] == played.ranks[0]["gradient"]
        assert each["loss"].startswith("DivergenceError: rank 2: policy loss is nan")
        for full in each["full"]:
            assert "rank 1" in full
            assert "No space left on device" in full
        if rank < 2:
            assert each["absence"].startswith(f"RankError: rank {rank} waited for rank 2, which")
    assert list((played.folder / "full").iterdir()) == []


def test_a_policy_with_adapters_is_not_divided(played: Played):
    policy = make_adapted(played.cases["value head"]).policy
    with pytest.raises(
        ConfigError, match=r"placement.sharding 'full': a policy with adapters .*use placement.sharding"
    ):
        policy.shard_units()
