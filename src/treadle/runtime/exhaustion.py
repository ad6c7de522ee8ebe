"""Memory that is not enough: an error that names the settings to change."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import torch

from treadle.config.on_policy import OnPolicyConfig
from treadle.config.schema import TrainConfig
from treadle.errors import ExhaustedError
from treadle.reading import brief

_ON_A_CPU = "can't allocate memory"
"""What torch's RuntimeError says where the host's memory is full."""


@contextmanager
def naming_what_to_lower(config: TrainConfig, doing: Literal["playing", "training"]) -> Generator[None, None, None]:
    """Raises ExhaustedError where a device or the host has no memory left for the block."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ExhaustedError(_said(config, doing, error)) from error
    except RuntimeError as error:
        if _ON_A_CPU not in str(error):
            raise
        raise ExhaustedError(_said(config, doing, error)) from error


def _said(config: TrainConfig, doing: Literal["playing", "training"], error: Exception) -> str:
    algorithm, advice = config.algorithm, list[str]()
    if doing == "training":
        if isinstance(algorithm, OnPolicyConfig) and algorithm.micro_batch > 1:
            lower = max(1, algorithm.micro_batch // 2)
            advice.append(f"algorithm.micro_batch={lower} (now {algorithm.micro_batch}), which gives the same gradient")
        if not config.policy.gradient_checkpointing:
            advice.append("policy.gradient_checkpointing=true")
        if not config.policy.lora.rank:
            advice.append("policy.lora.rank=32, in a run of another name")
    else:
        advice.append("more collection.lanes: a decision is made for the slots of a lane")
        if not config.placement.offload:
            advice.append("placement.offload=true")
        advice.append(f"fewer simulator.slots (now {config.simulator.slots}), in a run of another name")
    return (
        f"out of memory while {doing}: {brief(error)}; use {'; or '.join(advice)}; `treadle plan RECIPE --memory` "
        "shows what is held. The same command with it goes on from the last checkpoint"
    )
