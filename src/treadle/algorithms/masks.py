"""Which entries of a rollout count.

Shapes: T chunk steps, B slots, C actions of a chunk.
"""

import torch
from torch import Tensor


def reduce_to_chunk(rewards: Tensor, ended: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards summed and endings OR-ed over the valid actions of each chunk, and chunks of which some action was
    played. All three are [T, B, C], and become [T, B].
    """
    return torch.where(valid, rewards, 0).sum(-1), (ended & valid).any(-1), valid.any(-1)


def flatten_actions(x: Tensor) -> Tensor:
    """[T, B, C] to the action timeline [T * C, B]: entry t * C + c is action c of chunk step t."""
    steps, slots, chunk = x.shape
    return x.transpose(1, 2).reshape(steps * chunk, slots)


def unflatten_actions(x: Tensor, chunk: int) -> Tensor:
    """The inverse of `flatten_actions`: [T * C, B] to [T, B, C]."""
    return x.reshape(-1, chunk, x.shape[1]).transpose(1, 2)


def episode_lengths(ended: Tensor, valid: Tensor) -> Tensor:
    """How many valid actions of the decision's episode the rollout holds, for each decision [T, B]; 0 for a decision
    of which nothing was played. Both are [T, B, C].
    """
    steps, slots = ended.shape[:2]
    endings = (ended & valid).any(-1).long()
    episode = endings.cumsum(0) - endings
    played = valid.sum(-1)
    totals = torch.zeros(steps + 1, slots, dtype=played.dtype, device=played.device).scatter_add(0, episode, played)
    return torch.where(played > 0, totals.gather(0, episode), 0)


def trajectory_totals(lengths: Tensor, valid: Tensor) -> Tensor:
    """[2] valid actions and episodes of decisions, as `trajectory_weights` counts them; those of parts add up."""
    return torch.stack([valid.sum(), (valid.sum(-1) * _inverse_lengths(lengths, valid)).sum()]).double()


def trajectory_weights(lengths: Tensor, valid: Tensor, totals: Tensor | None = None) -> Tensor:
    """Weights [N] of decisions under which the mean over valid actions is the mean over episodes of each one's mean.

        w_i = (total valid / episodes) / length_i

    This is the reference's `mean(loss / (length / horizon) * mask)`, the mean taken over all entries of rollouts of
    fixed length. Where a batch holds a part of an episode's decisions, its share counts.

    Args:
        lengths: [N] valid actions of each decision's episode.
        valid: [N, C].
        totals: `trajectory_totals` of the whole batch that the decisions are a part of, by default of these.
    """
    played, episodes = trajectory_totals(lengths, valid) if totals is None else totals
    return _inverse_lengths(lengths, valid) * played / torch.where(episodes > 0, episodes, 1)


def _inverse_lengths(lengths: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid.any(-1), 1 / lengths.clamp(min=1).float(), 0)
