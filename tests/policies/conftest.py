"""Fixtures of the policy tests, which share `policy_samples`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from policy_samples import INSTRUCTIONS, Official, make_tiny

from treadle.policies.openvla_oft import OpenVLAOFT
from treadle.policies.prompt import build_tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def official() -> Official:
    directory = Path(__file__).parents[1] / "fixtures" / "openvla_oft_tiny"
    with np.load(directory / "expected.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    return Official(directory, arrays, json.loads((directory / "expected.json").read_text()))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(INSTRUCTIONS[:2], directory)
    return directory


@pytest.fixture(scope="session")
def tiny(tokenizer: Path) -> OpenVLAOFT:
    return make_tiny(tokenizer)
