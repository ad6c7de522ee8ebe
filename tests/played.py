"""Which actions were played, worked out for whole rollouts at once; hosts work it out chunk by chunk."""

from torch import Tensor

from treadle.algorithms.masks import flatten_actions, unflatten_actions


def valid_actions(ended: Tensor, *, partial_reset: bool = True) -> Tensor:
    """Actions that were played, given where episodes ended; the ending action itself is valid.

    With partial reset the next chunk of the slot starts another episode, so an ending masks the rest of its chunk
    only. Without, a slot plays one episode (fixed length), and everything after its ending is masked.

    Args:
        ended: [T, B, C] bool, terminated or truncated.

    Returns:
        [T, B, C] bool.
    """
    timeline = ended if partial_reset else flatten_actions(ended).T
    endings = timeline.long()
    valid = endings.cumsum(-1) - endings == 0
    return valid if partial_reset else unflatten_actions(valid.T, ended.shape[2])
