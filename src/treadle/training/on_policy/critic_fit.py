"""Updates of a critic: by its own epochs, or, if it is the policy's head, as a term of the policy's loss."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from treadle.algorithms.advantages import Moments, explained_variance
from treadle.algorithms.value_loss import ValueBatch, value_loss
from treadle.config.on_policy import OnPolicyConfig
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.errors import DivergenceError
from treadle.training.health import check_finite, check_gradients
from treadle.training.on_policy.batch import Samples, join_moments
from treadle.training.ranks import ALONE, Ranks
from treadle.training.schedule import draw_minibatches


class CriticFit:
    """It knows the value loss, and where that applies.

    Args:
        network: values privileged states; None where the policy's head is the critic, or there is none.
        config: the run's settings.
        device: where updates are computed.
        ranks: the processes that hold the batch.
    """

    def __init__(
        self, network: nn.Module | None, config: TrainConfig, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self._network = network
        self._config = config
        self._device = device
        self._ranks = ranks
        assert isinstance(config.algorithm, OnPolicyConfig)
        self._minibatch = config.algorithm.minibatch
        self.is_head = config.has_critic and network is None
        """The critic is the policy's head, and learns with it."""

    @torch.no_grad()
    def value(self, rollout: Rollout) -> Rollout:
        """The rollout with the values that a network of its own gives now, which may have learnt since it was played;
        the policy's head valued while it acted.
        """
        network = self._network
        if network is None:
            return rollout
        terminated, truncated = rollout.terminated.any(-1), rollout.truncated.any(-1)
        kept = {"truncated": truncated, "ended": terminated | truncated, "none": torch.zeros_like(truncated)}
        bootstrapped = kept[self._config.needs.keep_final]

        def values(states: Tensor) -> Tensor:
            return network(states.flatten(0, -3).to(self._device)).cpu().reshape(*states.shape[:-2], -1)

        follows = values(rollout.final_states[..., None, :])[..., 0]
        return replace(
            rollout,
            values=values(rollout.state),
            final_values=torch.where(bootstrapped, follows, 0.0),
            next_values=values(rollout.next_states[..., None, :])[..., 0],
        )

    def describe(self, samples: Samples) -> dict[str, float]:
        """How good the values of the rollouts were, as metrics."""
        played, own = self.entries(samples.valid), (samples.returns - samples.values, samples.returns)
        errors, returns = join_moments([Moments.of(x, played) for x in own], self._ranks)
        return {
            "critic/explained_variance": float(explained_variance(errors, returns)),
            "critic/mean_return": float(returns.mean),
        }

    def entries(self, valid: Tensor) -> Tensor:
        """A mask of values [.., V], from the mask of actions that were played [.., C]."""
        return valid if self._config.needs.values_per_action else valid.any(-1, keepdim=True)

    def shared_loss(self, samples: Samples, rows: Tensor, values: Tensor | None, entries: Tensor) -> Tensor:
        """The loss of the head's `values` [rows, V], over the minibatch's `entries`; 0 if the critic is no head."""
        if not self.is_head:
            return torch.zeros((), device=self._device)
        assert values is not None
        return self._loss(samples, rows, values, entries)

    def fit(self, samples: Samples, optimizer: torch.optim.Optimizer, iteration: int) -> float:
        """Epochs of minibatches of all ranks' samples through a separate network; returns the mean loss.

        Raises:
            DivergenceError: a loss or gradient is not finite.
        """
        network, config, ranks = self._network, self._config, self._ranks
        assert isinstance(network, nn.Module)
        place = ranks.place(samples.order)
        losses: list[float] = []
        for epoch in range(config.critic.epochs):
            for drawn in draw_minibatches(len(place), self._minibatch, config.seed, iteration, -1 - epoch):
                rows = place[drawn]
                rows = rows[rows >= 0]
                entries = ranks.sum(self.entries(samples.valid[rows]).sum())
                with ranks.together(DivergenceError):
                    values = network(samples.state[rows].to(self._device))
                    loss = self._loss(samples, rows, values, entries)
                    loss.backward()
                    check_finite("value loss", loss.detach())
                ranks.sum_gradients(network.parameters())
                norm = ranks.clip_gradients(network.parameters(), config.optimizer.gradient_norm)
                check_gradients("critic", norm, network, network.parameters(), ranks)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(float(loss.detach()))
        whole = ranks.sum(torch.tensor(losses, dtype=torch.float64)).tolist()
        return sum(whole) / len(whole) if whole else 0.0

    def _loss(self, samples: Samples, rows: Tensor, values: Tensor, entries: Tensor) -> Tensor:
        batch = ValueBatch(
            values=values,
            old_values=samples.values[rows].to(self._device),
            returns=samples.returns[rows].to(self._device),
            valid=self.entries(samples.valid[rows]).to(self._device),
        )
        return value_loss(batch, self._config.critic.clip, self._config.critic.huber_delta, entries)
