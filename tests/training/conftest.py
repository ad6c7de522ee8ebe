from pathlib import Path

import pytest

from miniature import make_policy


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a tiny policy with random weights."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_policy(tmp_path_factory.mktemp("tokenizer")).save(folder)
    return folder
