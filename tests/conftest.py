"""Settings of all tests. The folder is on the path, so that `fakes` and `miniature` can be imported."""

import sys
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

# A loaded machine is no mistake.
hypothesis.settings.register_profile("treadle", deadline=None)
hypothesis.settings.load_profile("treadle")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)
