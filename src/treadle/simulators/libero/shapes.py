"""Where things are, how high and how wide: from the corners of the boxes around their collision shapes.

Shapes: N points.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ANGLES = np.arange(36) * np.pi / 36


@dataclass(frozen=True, slots=True)
class Extent:
    """The room that a thing takes, in metres."""

    centre: NDArray[np.float64]
    """[3], the middle of its box along the axes."""
    bottom: float
    top: float
    width: float
    """Sideways, where it is narrowest."""
    narrow: NDArray[np.float64]
    """[2] unit vector along which it is narrowest."""


def extent(points: NDArray[np.float64]) -> Extent:
    """Of points [N, 3]."""
    low, high = points.min(0), points.max(0)
    width, narrow = narrowest(points[:, :2])
    return Extent((low + high) / 2, float(low[2]), float(high[2]), width, narrow)


def narrowest(points: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Of points [N, 2]: the least distance between two parallel lines around them, in steps of 5 degrees, and the unit
    vector [2] from one to the other.
    """
    directions = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])
    along = points @ directions
    widths = along.max(0) - along.min(0)
    least = int(widths.argmin())
    return float(widths[least]), directions[:, least]


def corners(
    centres: NDArray[np.float64], rotations: NDArray[np.float64], boxes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """World corners [8 n, 3] of boxes: n frames at `centres` [n, 3] with `rotations` [n, 3, 3], and in each a box [6],
    its middle and its half sizes.
    """
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
    local = boxes[:, None, :3] + signs * boxes[:, None, 3:]
    return (centres[:, None] + np.einsum("nij,nkj->nki", rotations, local)).reshape(-1, 3)


def half_turn(angle: float) -> float:
    """An angle between lines, which have no direction, in [-pi/2, pi/2)."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)
