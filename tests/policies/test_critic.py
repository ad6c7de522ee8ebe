import torch

from treadle.policies.critic import PrivilegedCritic


def test_a_privileged_value_belongs_to_the_state_before_its_action():
    torch.manual_seed(0)
    critic = PrivilegedCritic(state_dim=3, values=2, width=8)
    assert critic(torch.randn(5, 2, 3)).eq(0).all(), "an untrained critic knows nothing"
    torch.nn.init.normal_(critic.layers[-1].weight)
    states = torch.randn(5, 2, 3)
    values = critic(states)
    assert values.shape == (5, 2)
    moved = states.clone()
    moved[:, 1] += 1
    assert torch.allclose(critic(moved)[:, 0], values[:, 0], atol=1e-6)
    assert not torch.isclose(critic(moved)[:, 1], values[:, 1]).any()
    assert torch.allclose(critic(states[:, :1]), values[:, :1], atol=1e-6), (
        "the first alone is valued as the first of all"
    )
    same = states[:, :1].expand(-1, 2, -1)
    assert not torch.isclose(*critic(same).unbind(1)).any(), "the position in the chunk counts"


def test_one_value_per_chunk_reads_the_first_state():
    torch.manual_seed(0)
    critic = PrivilegedCritic(state_dim=3, values=1, width=8)
    torch.nn.init.normal_(critic.layers[-1].weight)
    states = torch.randn(5, 4, 3)
    assert critic(states).shape == (5, 1)
    assert torch.allclose(critic(states), critic(states[:, :1]), atol=1e-6)
