"""Rollouts of what a policy decides on random observations, for updates that are measured."""

from collections.abc import Callable

import numpy as np
import torch

from treadle.data.batch import TensorBatch
from treadle.data.noise import noise_key
from treadle.data.rollout import Rollout
from treadle.data.scenario import Scenario
from treadle.policies.protocol import Policy, Sampling

Observe = Callable[[np.random.Generator, int], TensorBatch]
"""Random observations of so many slots, as the policy's inputs."""


def random_rollout(
    policy: Policy, observe: Observe, version: int = 0, decisions: int = 2, slots: int = 4, instruction: str = "lift"
) -> Rollout:
    """Decisions on what `observe` shows, with random rewards; all episodes are cut at the end."""
    rng = np.random.default_rng(version)
    shape = (decisions, slots, policy.chunk)
    policy.eval()
    seen = [observe(rng, slots) for _ in range(decisions)]
    decided = [
        policy.act(inputs, Sampling(), noise_key(version, step, np.arange(slots))) for step, inputs in enumerate(seen)
    ]
    tensors = [inputs.tensors() for inputs in seen]
    truncated = torch.zeros(shape, dtype=torch.bool)
    truncated[-1, :, -1] = True
    scenario = Scenario("random", "train", "random", "train", 0, instruction)
    return Rollout(
        inputs=seen[0].of({name: torch.stack([each[name] for each in tensors]) for name in tensors[0]}),
        choices=torch.stack([decision.choice.cpu() for decision in decided]),
        log_probs=torch.stack([decision.log_probs.cpu() for decision in decided]),
        values=torch.stack([d.values.cpu() for d in decided if d.values is not None]),
        state=torch.zeros(*shape, 0),
        reward=torch.from_numpy(rng.normal(size=shape).astype(np.float32)),
        terminated=torch.zeros(shape, dtype=torch.bool),
        truncated=truncated,
        success=torch.zeros(shape, dtype=torch.bool),
        valid=torch.ones(shape, dtype=torch.bool),
        final_values=torch.zeros(shape[:2]),
        next_values=torch.zeros(slots),
        final_states=torch.zeros(*shape[:2], 0),
        next_states=torch.zeros(slots, 0),
        versions=torch.full(shape[:2], version),
        scenarios=np.full(shape[:2], scenario),
        episodes=[],
        seconds={},
    )
