"""Supervised fine-tuning on demonstrations.

Shapes: N decisions, C actions of a chunk, A action dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from treadle.config.supervised import ImitationConfig
from treadle.data.demonstrations import Demonstrations, action_statistics
from treadle.policies.protocol import Policy
from treadle.simulators.protocol import ActionDimension
from treadle.supervised.checkpoint import Draws, ImitationCheckpoint, Stateful, Trained
from treadle.supervised.checks import check_dimensions
from treadle.supervised.chunks import Chunks
from treadle.supervised.grounding import Grounding, cosine
from treadle.supervised.inputs import make_inputs
from treadle.training.optimizer import MasterAdamW


def imitate(
    policy: Policy,
    demonstrations: Demonstrations,
    chunks: Chunks,
    config: ImitationConfig,
    seed: int,
    grounding: Grounding | None,
    report: Callable[[int, float, float], None],
    checkpoint: ImitationCheckpoint | None = None,
) -> None:
    """Minimise the policy's loss of the demonstrated actions, cut into `chunks`; `report(step, loss, loss with that of
    grounding)`. With `checkpoint` it goes on from that checkpoint, and saves it.

    Batches are drawn from seeded permutations of all decisions, remainders carried into the next one. The result does
    not depend on whether inputs are kept or streamed, up to rounding.
    """
    # Everything that stays the same: inputs of all decisions, unless there are too many.
    parameters = policy.freeze(vision=config.freeze_vision)["policy"]
    inputs = make_inputs(policy, demonstrations, encode=config.freeze_vision, cache_gb=config.cache_gb)
    parameters += list(grounding.head.parameters()) if grounding else []
    optimizer = MasterAdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
    )
    generator, noise = (torch.Generator().manual_seed(seed) for _ in range(2))
    # Scenes take their share of each batch.
    scenes = min(round(config.batch * config.grounding_share), config.batch - 1) if grounding else 0
    batches = draw_batches(len(demonstrations.actions), config.batch - scenes, config.steps, generator)
    parts: dict[str, Stateful] = {"weights": Trained(policy), "optimizer": optimizer, "noise": Draws(noise)}
    if grounding is not None:
        parts["grounding"] = grounding
    if checkpoint is not None:
        checkpoint.restore(parts)
    done = 0 if checkpoint is None else checkpoint.step
    policy.train()
    for step, (rows, following) in enumerate(pairwise(chain(batches, [None]))):
        assert rows is not None
        if step < done:
            continue  # drawn, so that what follows is as it would have been
        batch = inputs.take(rows).to(policy.device)
        if following is not None:
            inputs.announce(following)
        actions, counted = chunks.take(rows.numpy())
        loss = imitation = policy.supervised_loss(
            batch,
            policy.targets(torch.from_numpy(actions)).to(policy.device),
            label_width=config.label_width,
            generator=noise,
            counted=None if counted.all() else torch.from_numpy(counted).to(policy.device),
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
        if checkpoint is not None:
            checkpoint.save(step + 1, config.steps, parts)
    policy.eval()


def draw_batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows [size] of `count` for each step, from permutations of all; remainders are carried into the next one."""
    order = torch.randperm(count, generator=generator)
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:size]
        order = order[size:]


def dataset_statistics(
    demonstrations: Demonstrations, dimensions: Sequence[ActionDimension], chunks: Chunks | None = None
) -> dict[str, Any]:
    """`norm_stats` of a data set: of actions, as `chunks` has them learned, whose grippers are not scaled, and of
    proprioception.

    Raises ConfigError for actions of other dimensions than the simulator's.
    """
    check_dimensions(demonstrations.actions, dimensions)
    scaled = [dimension.kind != "gripper" for dimension in dimensions]
    return {
        "action": action_statistics(demonstrations.actions if chunks is None else chunks.learned_actions(), scaled),
        "proprio": action_statistics(demonstrations.state),
        "num_transitions": len(demonstrations.actions),
        "num_trajectories": len(np.unique(demonstrations.episode_index)),
    }
