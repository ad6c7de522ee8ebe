"""Supervised fine-tuning on demonstrations.

Shapes: N decisions, C actions of a chunk, A action dimensions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from treadle.config.schema import ImitationConfig
from treadle.data.demonstrations import Demonstrations, action_statistics
from treadle.policies.protocol import Policy
from treadle.simulators.protocol import ActionDimension
from treadle.supervised.checks import check_dimensions
from treadle.supervised.demonstrations import cut_chunks, learnable
from treadle.supervised.grounding import Grounding, cosine, prepare_all
from treadle.training.optimizer import MasterAdamW


def imitate(
    policy: Policy,
    demonstrations: Demonstrations,
    dimensions: Sequence[ActionDimension],
    config: ImitationConfig,
    seed: int,
    grounding: Grounding | None,
    report: Callable[[int, float, float], None],
) -> None:
    """Minimise the policy's loss of the demonstrated actions, whose dimensions `actions` explains; `report(step, loss,
    loss with that of grounding)`.

    Batches are drawn from seeded permutations of all decisions, remainders carried into the next one. With targets
    among the dimensions, chunks that pass the end of their episode are left out.
    """
    # Everything that stays the same: inputs and targets of all decisions.
    parameters = policy.freeze(vision=config.freeze_vision)["policy"]
    chunks = cut_chunks(demonstrations.actions, demonstrations.episode_index, policy.predicted, dimensions)
    learned = torch.from_numpy(learnable(demonstrations.episode_index, policy.predicted, dimensions))
    targets = policy.targets(torch.from_numpy(chunks))
    frames, instructions, state = demonstrations.frames, demonstrations.instructions, demonstrations.state
    inputs = prepare_all(policy, frames, instructions, state, encode=config.freeze_vision)
    parameters += list(grounding.head.parameters()) if grounding else []
    optimizer = MasterAdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
    )
    generator, noise = (torch.Generator().manual_seed(seed) for _ in range(2))
    # Scenes take their share of each batch.
    order = learned[torch.randperm(len(learned), generator=generator)]
    scenes = min(round(config.batch * config.grounding_share), config.batch - 1) if grounding else 0
    policy.train()
    for step in range(config.steps):
        while len(order) < config.batch - scenes:
            order = torch.cat([order, learned[torch.randperm(len(learned), generator=generator)]])
        rows, order = order[: config.batch - scenes], order[config.batch - scenes :]
        loss = imitation = policy.supervised_loss(
            inputs.take(rows).to(policy.device),
            targets[rows].to(policy.device),
            label_width=config.label_width,
            generator=noise,
        )
        if grounding is not None and scenes:
            loss = loss + config.grounding_weight * grounding.loss(scenes)[0]
        # One step of the optimizer, at the rate of the schedule.
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * cosine(step, config.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step, float(imitation.detach()), float(loss.detach()))
    policy.eval()


def dataset_statistics(demonstrations: Demonstrations, dimensions: Sequence[ActionDimension]) -> dict[str, Any]:
    """`norm_stats` of a data set: of actions, whose grippers are not scaled, and of proprioception.

    Raises ConfigError for actions of other dimensions than the simulator's.
    """
    check_dimensions(demonstrations.actions, dimensions)
    scaled = [dimension.kind != "gripper" for dimension in dimensions]
    return {
        "action": action_statistics(demonstrations.actions, scaled),
        "proprio": action_statistics(demonstrations.state),
        "num_transitions": len(demonstrations.actions),
        "num_trajectories": len(np.unique(demonstrations.episode_index)),
    }
