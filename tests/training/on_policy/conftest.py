import copy

import pytest
import torch

from miniature import make_policy
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAOFT:
    torch.manual_seed(0)
    policy = make_policy(tmp_path_factory.mktemp("tokenizer"), chunk=2, action_dim=3)
    policy.add_value_head(2, hidden=(16,))
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.last.weight, std=0.3)
    return policy


@pytest.fixture
def policy(base: OpenVLAOFT) -> OpenVLAOFT:
    return copy.deepcopy(base)
