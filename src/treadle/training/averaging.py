"""An average of a policy's weights over its updates: less noisy than the last ones (Polyak and Juditsky 1992)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from treadle.training.shards import Rows, Shard, as_state, from_state, own_rows


class WeightAverage:
    """An exponential moving average of parameters, corrected for its start (Kingma and Ba 2015, section 3).

        average_n = sum_i decay^(n - i) w_i / sum_i decay^(n - i)

    Of sharded parameters it holds this rank's rows.

    Args:
        parameters: they are averaged; every `update` reads them, and only `swap_in` and `swap_out`
            write to them.
        decay: share that the past keeps at each update, in [0, 1); 0 keeps the last weights, and no copy of them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters) if decay else []
        self._decay = decay
        self._weight = 0.0
        self._latest: list[Tensor] = []
        """The parameters themselves, while the average is in their place."""
        self._average = [own_rows(parameter).float().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are now into the average."""
        self._weight = self._decay * self._weight + 1
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(own_rows(parameter).float(), 1 / self._weight)

    @torch.no_grad()
    def swap_in(self) -> None:
        """Put the average in the place of the parameters, until `swap_out`."""
        self._latest = [own_rows(parameter).clone() for parameter in self._parameters]
        for average, parameter in zip(self._average, self._parameters, strict=True):
            own_rows(parameter).copy_(average)

    @torch.no_grad()
    def swap_out(self) -> None:
        """Put the parameters back."""
        for latest, parameter in zip(self._latest, self._parameters, strict=True):
            own_rows(parameter).copy_(latest)
        self._latest = []

    def state_dict(self) -> dict[str, float | list[Tensor | Shard]]:
        """The average and its weight."""
        pairs = zip(self._average, self._parameters, strict=True)
        return {"weight": self._weight, "average": [as_state(average, parameter) for average, parameter in pairs]}

    def load_state_dict(self, state: Mapping[str, float | Sequence[Tensor | Rows]]) -> None:
        """Go on from `state`."""
        weight, averages = state["weight"], state["average"]
        assert isinstance(weight, float)
        assert isinstance(averages, Sequence)
        self._weight = weight
        for average, parameter, saved in zip(self._average, self._parameters, averages, strict=True):
            average.copy_(from_state(saved, parameter))
