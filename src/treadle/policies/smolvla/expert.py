"""The expert on one prefix, as a chain asks it.

Shapes: B samples, H predicted actions, D padded dimensions.
"""

from torch import Tensor

from treadle.policies.smolvla.deviation import DeviationHead
from treadle.policies.smolvla.model import Prefix, SmolVLAModel


class Expert:
    """Velocities and deviations of one prefix; both are read from one pass of the expert."""

    def __init__(self, model: SmolVLAModel, noise_head: DeviationHead | None, prefix: Prefix) -> None:
        self._model, self._noise_head, self._prefix = model, noise_head, prefix
        self._last: tuple[Tensor, Tensor] | None = None

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, H, D] of states [B, H, D] at times [B]."""
        return self._model.action_out_proj(self._hidden(x, t))

    def deviation(self, x: Tensor, t: Tensor) -> Tensor:
        """The same of standard deviations."""
        assert self._noise_head is not None
        return self._noise_head(self._hidden(x, t))

    def _hidden(self, x: Tensor, t: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = x, self._model.expert_states(self._prefix, x, t)
        return self._last[1]
