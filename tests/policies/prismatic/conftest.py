"""Fixtures of the policy tests, which share `policy_samples`."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from policy_samples import INSTRUCTIONS, Official, make_tiny, read_official

from treadle.policies.prismatic.openvla import OpenVLA
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.prompt import build_tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def official() -> Official:
    return read_official("openvla_oft_tiny")


@pytest.fixture(scope="session")
def official_openvla() -> Official:
    return read_official("openvla_tiny")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(INSTRUCTIONS[:2], directory)
    return directory


@pytest.fixture(scope="session")
def tiny(tokenizer: Path) -> OpenVLAOFT:
    return make_tiny(tokenizer)


@pytest.fixture(scope="session")
def tiny_openvla(tokenizer: Path) -> OpenVLA:
    return make_tiny(tokenizer, "openvla")


@pytest.fixture(scope="session", params=["openvla_oft", "openvla"])
def policy(request: pytest.FixtureRequest) -> PrismaticPolicy:
    """Each tiny policy in turn."""
    return request.getfixturevalue({"openvla_oft": "tiny", "openvla": "tiny_openvla"}[request.param])
