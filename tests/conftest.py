"""Settings of all tests. The folder is on the path, so that `fakes` and `miniature` can be imported."""

import sys
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

# A loaded machine is no mistake. The same examples each time, so that a change is what breaks a test; `make test-full`
# looks for new ones.
hypothesis.settings.register_profile("treadle", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile("treadle")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `simulator`, in tests/simulators/NAME, where that simulator's environment is missing."""
    if item.get_closest_marker("simulator") is None:
        return
    from treadle.errors import SimulatorError
    from treadle.simulators.build import simulator_environment

    name = item.path.parent.name
    environment = simulator_environment(name)
    assert environment is not None, f"tests/simulators/{name} is marked `simulator`, which has no environment.toml"
    try:
        environment.interpreter()
    except SimulatorError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a tiny policy with random weights."""
    from miniature import make_policy

    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_policy(tmp_path_factory.mktemp("tokenizer")).save(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)
