"""Curves in Weights & Biases, by its own package without a network."""

from pathlib import Path

import pytest

from leftovers import workers_left
from treadle.errors import ConfigError
from treadle.reporting.wandb import WandbWriter


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own"))


@pytest.mark.integration
def test_rows_are_kept_and_a_resumed_run_goes_on(tmp_path: Path):
    for iteration in (1, 2):
        with WandbWriter(tmp_path, {"name": "mine", "seed": 3}) as writer:
            writer.write({"iteration": iteration, "rollout/success": 0.5})
            assert writer.place.startswith("wandb sync ")
    folders = sorted(path for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert folders
    # W&B numbers folders of one second.
    assert all((tmp_path / "wandb" / "run-id").read_text() in path.name for path in folders), "one run"
    files = sorted((tmp_path / "wandb").rglob("*.wandb"))
    assert files
    assert any(b"rollout/success" in path.read_bytes() for path in files)
    assert not workers_left()


def test_what_wandb_says_is_part_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_: object) -> None:
        raise wandb.Error("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"^wandb: W&B refuses: No API key configured; log in with `wandb login`"):
        WandbWriter(tmp_path, {})


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb=true needs the package 'wandb'.* pip install 'treadle\[wandb\]'"):
        WandbWriter(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
