"""AdamW for parameters of any type: parameters below float32 are updated in a float32 copy."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class MasterAdamW(torch.optim.AdamW):
    """AdamW that keeps a float32 master of every parameter in bfloat16 or float16: only there do small steps survive.

    The gradient goes to the master before a step, and the rounded master to the parameter after it. For float32
    parameters it is `torch.optim.AdamW`. Takes the same arguments.
    """

    def __init__(self, params: ParamsT, **settings: Any) -> None:
        entries: list[Any] = list(params)
        grouped = bool(entries) and isinstance(entries[0], dict)
        groups: list[dict[str, Any]] = [dict(entry) for entry in entries] if grouped else [{"params": entries}]
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for group in groups:
            group["params"] = [self._master(parameter) for parameter in group["params"]]
        super().__init__(groups, **settings)
        # No `step` of its own: torch would then run the hooks of both `step` methods.
        self.register_step_pre_hook(self._gather)
        self.register_step_post_hook(self._scatter)

    def _master(self, parameter: Tensor) -> Tensor:
        if parameter.dtype not in (torch.bfloat16, torch.float16):
            return parameter
        master = parameter.detach().float()
        self._pairs.append((parameter, master))
        return master

    @torch.no_grad()
    def _gather(self, *_: Any) -> None:
        for parameter, master in self._pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()

    @torch.no_grad()
    def _scatter(self, *_: Any) -> None:
        for parameter, master in self._pairs:
            parameter.copy_(master)
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the parameters."""
        super().zero_grad(set_to_none)
        for parameter, _ in self._pairs:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state and the masters, because the parameters lack their last digits."""
        return {**super().state_dict(), "masters": [master for _, master in self._pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`; its masters replace those made from the parameters."""
        state = dict(state_dict)
        masters = state.pop("masters", [])
        super().load_state_dict(state)
        with torch.no_grad():
            for (_, master), saved in zip(self._pairs, masters, strict=True):
                master.copy_(saved)
