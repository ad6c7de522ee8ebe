"""The gradient of an update that begins before its last rollout is there.

Where an update is one step, and no term of its loss depends on other decisions, the gradient is a sum over decisions
with a divisor that is known at the end: rollouts add to it one by one, in whatever parts they come.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from treadle.algorithms.masks import trajectory_totals, trajectory_weights
from treadle.config.on_policy import OnPolicyConfig
from treadle.data.rollout import Rollout
from treadle.training.on_policy.batch import Batch, make_batch
from treadle.training.on_policy.gradient import MinibatchResult, PolicyGradient, join_results
from treadle.training.on_policy.meters import Meters
from treadle.training.ranks import Ranks
from treadle.training.shards import own_rows

_NOT_MEANS = ("ratio_min", "ratio_max", "ratio_max_negative", "gap_sum", "gap_max", "gap_count")
"""Numbers of a minibatch that are no means over its entries."""


class GradientStream:
    """Adds the gradient of rollouts to the parameters, and divides it when all are there.

    Args:
        gradient: it computes.
        algorithm: settings for which `OnPolicyConfig.not_streamed` gives no reason.
        dimension_mask: [A] bool, the action dimensions that are trained.
        ranks: those that hold the batch.
        freeze_log_probs: adds log-probs under frozen policies to a batch.
        meters: they measure the update's one step.
    """

    def __init__(
        self,
        gradient: PolicyGradient,
        algorithm: OnPolicyConfig,
        dimension_mask: Tensor,
        ranks: Ranks,
        freeze_log_probs: Callable[[Batch, int], None],
        meters: Meters,
    ) -> None:
        self._gradient = gradient
        self._algorithm = algorithm
        self._dimension_mask = dimension_mask
        self._ranks = ranks
        self._freeze_log_probs = freeze_log_probs
        self._meters = meters
        self.clear()

    def clear(self) -> None:
        """Forget all parts; the parameters' gradients are the caller's."""
        self.count = 0
        """Rollouts that are in."""
        self._results: list[MinibatchResult] = []
        self._entries = torch.zeros((), dtype=torch.float64)
        self._totals = torch.zeros(2, dtype=torch.float64)

    def add(self, rollouts: Sequence[Rollout], iteration: int) -> None:
        """Add what is new in `rollouts`. Raises as `PolicyGradient.accumulate`."""
        self._meters.begin(iteration)
        for rollout in rollouts[self.count :]:
            batch = make_batch([rollout], self._algorithm, self._dimension_mask, self._ranks)
            trained = batch.trained
            if batch.weights is not None:
                # 1 / length; what the whole batch's weights have beside comes at the end.
                batch.weights = trajectory_weights(trained.lengths, trained.valid, torch.ones(2))
                self._totals += trajectory_totals(trained.lengths, trained.valid)
            self._entries += self._gradient.objective.valid_entries(trained.valid).sum()
            self._freeze_log_probs(batch, iteration)
            rows = torch.arange(len(trained))
            if int(self._ranks.sum(torch.tensor(len(rows)))):
                meter = self._meters.signal
                self._results.append(self._gradient.accumulate(batch, rows, iteration, divided=False, meter=meter))
            self.count += 1

    @torch.no_grad()
    def finish(self, parameters: Sequence[nn.Parameter]) -> MinibatchResult:
        """Divide this rank's gradients, and the numbers of all ranks."""
        divisor = 1 / self._ranks.sum(self._entries)
        weight = torch.ones((), dtype=torch.float64)
        if self._algorithm.trajectory_weights:
            played, episodes = self._ranks.sum(self._totals)
            weight = played / torch.where(episodes > 0, episodes, 1)
        for parameter in parameters:
            if parameter.grad is not None:
                own_rows(parameter.grad).mul_(float(weight * divisor))
        whole = join_results(self._results)
        means = {name: x * float(divisor) for name, x in whole.items() if name not in _NOT_MEANS}
        return whole | means | {"loss": means["loss"] * float(weight)}
