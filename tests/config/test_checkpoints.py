"""What people write where a checkpoint is asked for."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from treadle.config import checkpoints
from treadle.config.checkpoints import resolve_checkpoint
from treadle.errors import CheckpointError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and one packaged checkpoint."""
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path / "packaged")
    (tmp_path / "packaged" / "tabletop-base").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_by_name_and_by_path(here: Path):
    assert resolve_checkpoint("tabletop-base") == here.parent / "packaged" / "tabletop-base"
    assert resolve_checkpoint(str(here)) == here
    with pytest.raises(CheckpointError, match="did you mean 'tabletop-base'"):
        resolve_checkpoint("tabletop-bse")
    (here / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_checkpoint("file")


def test_the_policy_of_a_run(here: Path):
    run = Path("runs/mine")
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"runs/mine: this run has saved no policy yet"):
        resolve_checkpoint("runs/mine")
    for iteration in (9, 10):
        (run / "checkpoints" / f"iteration-{iteration:06d}" / "policy").mkdir(parents=True)
    latest = run / "checkpoints" / "iteration-000010"
    assert resolve_checkpoint("runs/mine") == latest / "policy", "it goes on"
    assert resolve_checkpoint(str(latest)) == latest / "policy"
    (run / "policy").mkdir()
    assert resolve_checkpoint("runs/mine") == run / "policy", "it is finished"
    assert resolve_checkpoint("runs/mine/policy") == run / "policy"


def test_a_base_that_a_recipe_makes_names_its_command(here: Path):
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint folder 'runs/libero-object-base/policy'; make it with: treadle sft libero-object-base$",
    ):
        resolve_checkpoint("runs/libero-object-base/policy")
    with pytest.raises(CheckpointError, match=r"make it with: treadle train quickstart$"):
        resolve_checkpoint("runs/quickstart/policy")


def test_an_id_of_the_hub_is_looked_up_in_its_cache(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "cache"))
    with pytest.raises(CheckpointError, match=r"download it first: hf download openvla/openvla-7b$"):
        resolve_checkpoint("openvla/openvla-7b")
    model = here / "cache" / "models--openvla--openvla-7b"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    (model / "snapshots" / "abc").mkdir(parents=True)
    assert resolve_checkpoint("openvla/openvla-7b") == model / "snapshots" / "abc"
