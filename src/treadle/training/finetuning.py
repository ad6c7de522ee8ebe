"""It loads a policy for training: its type, its adapters, and gradient checkpointing."""

from pathlib import Path

import torch

from treadle.config.schema import FineTuningConfig
from treadle.policies.load import load_configured
from treadle.policies.protocol import Policy


def load_trainable(
    directory: Path,
    config: FineTuningConfig,
    device: torch.device,
    *,
    freeze_vision: bool,
) -> Policy:
    """Load a checkpoint to fine-tune it as configured. Vision gets adapters unless it is frozen. If the checkpoint has
    adapters of the configured rank, it goes on with them.

    Raises:
        CheckpointError: The directory cannot be used.
        ConfigError: Settings that the policy does not have, or adapters that do not fit.
    """
    policy = load_configured(directory, config, device=str(device), merge=not config.lora.rank)
    return make_trainable(policy, config, freeze_vision=freeze_vision)


def make_trainable(policy: Policy, config: FineTuningConfig, *, freeze_vision: bool) -> Policy:
    """Give a policy the adapters and the gradient checkpointing of a configuration, in place. Raises ConfigError."""
    lora = config.lora
    if lora.rank:
        policy.add_lora(lora.rank, lora.alpha, lora.targets, vision=not freeze_vision)
    policy.recompute(config.gradient_checkpointing)
    return policy
