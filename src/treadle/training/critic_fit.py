"""Updates of a critic: by its own epochs, or as a term of the policy's loss where it is the policy's head."""

import torch
from torch import Tensor, nn

from treadle.algorithms.advantages import explained_variance
from treadle.algorithms.levels import masked_mean
from treadle.algorithms.value_loss import ValueBatch, value_loss
from treadle.config.schema import TrainConfig
from treadle.policies.critic import Critic
from treadle.training.health import check_finite, check_gradients
from treadle.training.samples import Samples
from treadle.training.schedule import draw_minibatches


class CriticFit:
    """Knows the value loss and where it applies.

    Args:
        critic: a head of the policy, a network of its own, or a stand-in without parameters.
        config: the run's settings.
        device: where updates are computed.
    """

    def __init__(self, critic: Critic, config: TrainConfig, device: torch.device) -> None:
        self.critic = critic
        self._config = config
        self._device = device
        self.is_head = config.has_critic and not critic.reads_state
        """The critic is the policy's head, and learns with it."""

    def describe(self, samples: Samples) -> dict[str, float]:
        """How good the values were that the rollouts noted, as metrics."""
        played = self.entries(samples.valid)
        return {
            "critic/explained_variance": float(explained_variance(samples.values, samples.returns, played)),
            "critic/mean_return": float(masked_mean(samples.returns, played)),
        }

    def entries(self, valid: Tensor) -> Tensor:
        """[.., C] actions played, as a mask of values [.., V]."""
        return valid if self._config.algorithm.values_per_action else valid.any(-1, keepdim=True)

    def shared_loss(self, samples: Samples, rows: Tensor, values: Tensor | None, entries: Tensor) -> Tensor:
        """The loss of the head's `values` [rows, V], `entries` being the minibatch's; 0 where it is no head."""
        if not self.is_head:
            return torch.zeros((), device=self._device)
        assert values is not None
        return self._loss(samples, rows, values, entries)

    def fit(self, samples: Samples, optimizer: torch.optim.Optimizer, iteration: int) -> float:
        """Epochs of minibatches through a network of its own; returns the mean loss.

        Raises:
            DivergenceError: a loss or gradient is not finite.
        """
        network, config = self.critic, self._config
        assert isinstance(network, nn.Module)
        losses: list[float] = []
        for epoch in range(config.critic.epochs):
            for rows in draw_minibatches(len(samples), config.algorithm.minibatch, config.seed, iteration, -1 - epoch):
                values = network(None, samples.state[rows].to(self._device))
                loss = self._loss(samples, rows, values, self.entries(samples.valid[rows]).sum())
                loss.backward()
                norm = nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.gradient_norm)
                check_finite("value loss", loss.detach())
                check_gradients("critic", norm, network, network.parameters())
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(float(loss.detach()))
        return sum(losses) / len(losses) if losses else 0.0

    def _loss(self, samples: Samples, rows: Tensor, values: Tensor, entries: Tensor) -> Tensor:
        batch = ValueBatch(
            values=values,
            old_values=samples.values[rows].to(self._device),
            returns=samples.returns[rows].to(self._device),
            valid=self.entries(samples.valid[rows]).to(self._device),
        )
        return value_loss(batch, self._config.critic.clip, self._config.critic.huber_delta, entries)[0]
