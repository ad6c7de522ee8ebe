"""AdamW for parameters of any type, whole or sharded: parameters below float32 are updated in a float32 copy."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from treadle.errors import CheckpointError
from treadle.training.shards import as_state, from_state, is_sharded, own_rows

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter that has had a step, beside their count."""


class MasterAdamW(torch.optim.AdamW):
    """AdamW that keeps a float32 master of every parameter in bfloat16 or float16: only there do small steps survive.

    The gradient goes to the master before a step, and the rounded master to the parameter after it. For float32
    parameters it is `torch.optim.AdamW`. Takes the same arguments.

    Of a sharded parameter it updates this rank's rows, as plain tensors. Its state fits any number of ranks: entries go
    by the place of a parameter among the arguments, and hold whole tensors or a `Shard` of them.
    """

    def __init__(self, params: ParamsT, **settings: Any) -> None:
        entries: list[Any] = list(params)
        grouped = bool(entries) and isinstance(entries[0], dict)
        groups: list[dict[str, Any]] = [dict(entry) for entry in entries] if grouped else [{"params": entries}]
        self._given: list[Tensor] = []
        """All parameters as they were given, in order."""
        self._pairs: list[tuple[Tensor, Tensor]] = []
        """Each parameter for which AdamW updates another tensor: a master, or the rows of a shard."""
        self._hosts: dict[int, Tensor] = {}
        """Where each tensor goes that is offloaded, by its id."""
        self.offloaded = False
        """Masters and moments are in the CPU's memory, until the next step."""
        for group in groups:
            group["params"] = [self._own(parameter) for parameter in group["params"]]
        super().__init__(groups, **settings)
        # No `step` of its own: torch would then run the hooks of both `step` methods.
        self.register_step_pre_hook(self._gather)
        self.register_step_post_hook(self._scatter)

    def _own(self, parameter: Tensor) -> Tensor:
        """The tensor that AdamW updates for a parameter."""
        self._given.append(parameter)
        own = own_rows(parameter)
        if parameter.dtype in (torch.bfloat16, torch.float16):
            own = own.float()
        elif not is_sharded(parameter):
            return parameter
        self._pairs.append((parameter, own))
        return own

    def _masters(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of a parameter and a master; other pairs share their memory."""
        return ((parameter, own) for parameter, own in self._pairs if own.dtype != parameter.dtype)

    @torch.no_grad()
    def _gather(self, *_: Any) -> None:
        self.restore()
        for parameter, own in self._pairs:
            own.grad = None if parameter.grad is None else own_rows(parameter.grad).to(own.dtype)
            # A master has a copy, so both are in memory for one parameter at a time alone.
            if own.dtype != parameter.dtype:
                parameter.grad = None

    @torch.no_grad()
    def _scatter(self, *_: Any) -> None:
        for parameter, master in self._masters():
            own_rows(parameter).copy_(master)
        for pair in self._pairs:
            pair[1].grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the parameters."""
        super().zero_grad(set_to_none)
        for parameter, _ in self._pairs:
            parameter.grad = None

    @torch.no_grad()
    def offload(self) -> None:
        """Move masters and moments to the CPU's memory; the next step brings them back. On a CPU nothing moves."""
        self.offloaded = True
        moved = [tensor for tensor in self._movable() if tensor.device.type != "cpu"]
        for tensor in moved:
            if id(tensor) not in self._hosts:
                self._hosts[id(tensor)] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._hosts[id(tensor)].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in moved):
            torch.cuda.synchronize()
        for tensor in moved:
            tensor.data = self._hosts[id(tensor)]
        if moved and torch.cuda.is_available():
            # Other processes on this device may use it meanwhile.
            torch.cuda.empty_cache()

    @torch.no_grad()
    def restore(self) -> None:
        """Undo `offload`. The memory on the CPU stays reserved for the next time."""
        if self.offloaded:
            devices = {id(own): parameter.device for parameter, own in self._pairs}
            for group in self.param_groups:
                for own in group["params"]:
                    for tensor in (own, *self.state.get(own, {}).values()):
                        if id(tensor) in self._hosts:
                            tensor.data = tensor.to(devices.get(id(own), own.device), non_blocking=True)
        self.offloaded = False

    def _movable(self) -> Iterator[Tensor]:
        """Masters and moments."""
        yield from (master for _, master in self._masters())
        for held in self.state.values():
            yield from (x for x in held.values() if isinstance(x, Tensor) and x.dim())

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state and the masters, because the parameters lack their last digits."""
        found = super().state_dict()
        for index, held in found["state"].items():
            found["state"][index] = {
                name: as_state(x, self._given[index]) if isinstance(x, Tensor) and x.dim() else x
                for name, x in held.items()
            }
        return {**found, "masters": [as_state(master, parameter) for parameter, master in self._masters()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`, of any number of ranks; its masters replace those made from the parameters. Settings
        stay as they are here.

        Raises:
            CheckpointError: It is of other parameters.
        """
        self.restore()
        self._hosts.clear()
        state = dict(state_dict)
        masters = state.pop("masters", [])
        own = super().state_dict()["param_groups"]
        if [group["params"] for group in own] != [group["params"] for group in state["param_groups"]]:
            raise CheckpointError("the optimizer's state is of another number of parameters than are trained here")
        state["param_groups"] = own
        for index, held in state["state"].items():
            if held.keys() != {"step", *_MOMENTS} or not isinstance(held["step"], Tensor):
                raise CheckpointError(f"the optimizer's state of parameter {index} is not step, {', '.join(_MOMENTS)}")
        state["state"] = {
            index: held | {name: from_state(held[name], self._given[index]) for name in _MOMENTS}
            for index, held in state["state"].items()
        }
        super().load_state_dict(state)
        with torch.no_grad():
            for (parameter, master), saved in zip(self._masters(), masters, strict=True):
                master.copy_(from_state(saved, parameter))
