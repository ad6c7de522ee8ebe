"""Loads the tiny checkpoint, and changed copies of it."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from smolvla_samples import FIXTURE, HEADS, TASKS

from treadle.policies.smolvla import SmolVLA
from treadle.policies.smolvla.inputs import SmolVLAInputs


@pytest.fixture(scope="session")
def expected() -> dict[str, Tensor]:
    """What lerobot made of the samples."""
    return load_file(FIXTURE / "expected.safetensors") | load_file(FIXTURE / "acted.safetensors")


@pytest.fixture
def load() -> Callable[..., SmolVLA]:
    """Load the checkpoint, or another directory, with settings."""

    def loaded(directory: Path = FIXTURE, dtype: torch.dtype | None = None, **settings: Any) -> SmolVLA:
        return SmolVLA.load(directory, device=torch.device("cpu"), dtype=dtype, **HEADS | settings)

    return loaded


@pytest.fixture
def prepare(expected: dict[str, Tensor]) -> Callable[[SmolVLA], SmolVLAInputs]:
    """The samples as a policy's inputs."""

    def prepared(policy: SmolVLA) -> SmolVLAInputs:
        frames = [expected[f"frames{camera}"].numpy() for camera in range(2)]
        return policy.prepare(frames, TASKS, expected["state"].numpy())

    return prepared


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the checkpoint: keys of its JSON files changed, files removed, tensors of its weights changed."""

    def copied(
        config: dict[str, Any] | None = None,
        *,
        remove: tuple[str, ...] = (),
        weights: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        statistics: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> Path:
        directory = tmp_path / "changed"
        shutil.copytree(FIXTURE, directory)
        for name in remove:
            (directory / name).unlink()
        content = json.loads((directory / "config.json").read_text()) | (config or {})
        (directory / "config.json").write_text(json.dumps(content))
        if weights is not None:
            save_file(weights(load_file(directory / "model.safetensors")), directory / "model.safetensors")
        if statistics is not None:
            for path in directory.glob("policy_*.safetensors"):
                save_file(statistics(load_file(path)), path)
        return directory

    return copied
