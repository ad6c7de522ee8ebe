"""Supervised fine-tuning on demonstrations.

Shapes: N decisions, C actions of a chunk, A action dimensions, K = C * A tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from treadle.config.schema import ImitationConfig
from treadle.data.demonstrations import Demonstrations, action_statistics
from treadle.policies.protocol import Inputs, Policy
from treadle.training.demonstrations import cut_chunks
from treadle.training.grounding import Grounding, cosine
from treadle.training.optimizer import MasterAdamW


def imitate(
    policy: Policy,
    demonstrations: Demonstrations,
    config: ImitationConfig,
    seed: int,
    grounding: Grounding | None,
    report: Callable[[int, float, float], None],
) -> None:
    """Minimise the cross-entropy of the demonstrated action tokens; `report(step, loss, token accuracy)`.

    Batches are drawn from seeded permutations of all decisions, remainders carried into the next one.
    """
    parameters = policy.freeze(vision=config.freeze_vision)["policy"]
    chunks = cut_chunks(demonstrations.actions, demonstrations.episode_index, policy.chunk)
    tokens = policy.tokenize_actions(torch.from_numpy(chunks))
    inputs = _prepare(policy, demonstrations, config.freeze_vision)
    parameters += list(grounding.head.layer.parameters()) if grounding else []
    optimizer = MasterAdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
    )
    generator, noises = (torch.Generator().manual_seed(seed) for _ in range(2))
    order = torch.randperm(len(tokens), generator=generator)
    scenes = min(round(config.batch * config.grounding_share), config.batch - 1) if grounding else 0
    policy.train()
    for step in range(config.steps):
        while len(order) < config.batch - scenes:
            order = torch.cat([order, torch.randperm(len(tokens), generator=generator)])
        rows, order = order[: config.batch - scenes], order[config.batch - scenes :]
        right = tokens[rows].to(policy.device)
        noise = torch.rand(right.shape, generator=noises).to(policy.device)
        loss = imitation = policy.supervised_loss(inputs.take(rows).to(policy.device), right, config.label_width, noise)
        if grounding is not None and scenes:
            loss = loss + config.grounding_weight * grounding.loss(scenes)[0]
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * cosine(step, config.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step, float(imitation.detach()), float(loss.detach()))
    policy.eval()


def _prepare(policy: Policy, demonstrations: Demonstrations, encode: bool, batch: int = 512) -> Inputs:
    """All frames as inputs, as features where vision is frozen."""
    parts = []
    for start in range(0, len(demonstrations.frames), batch):
        rows = slice(start, start + batch)
        part = policy.prepare(
            demonstrations.frames[rows], demonstrations.instructions[rows], demonstrations.state[rows]
        )
        parts.append(policy.encode(part) if encode else part)
    return Inputs.cat(parts)


def dataset_statistics(demonstrations: Demonstrations) -> dict[str, Any]:
    """`norm_stats` of a data set: of actions, whose last dimension (the gripper) is not scaled, and proprioception."""
    scaled = [True] * (demonstrations.actions.shape[1] - 1) + [False]
    return {
        "action": action_statistics(demonstrations.actions, scaled),
        "proprio": action_statistics(demonstrations.state),
        "num_transitions": len(demonstrations.actions),
        "num_trajectories": int(demonstrations.episode_index[-1]) + 1,
    }
