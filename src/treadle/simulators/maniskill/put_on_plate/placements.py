"""Where things and the arm may start, as published: squares of a grid in front of the arm.

World frame of the scene: metres, z up, the table's top at `TABLE_TOP`; quaternions have w first.
"""

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]

TABLE_TOP = 0.87
CENTRE = np.array([-0.16, 0.0])
HALF_EDGE = 0.075
"""The training square reaches this far from its centre, along x and y."""
APART = 0.07
"""Centres of a thing and a plate are further apart than this."""
FAR_APART = 0.15
"""So are two things that must not touch."""
START = np.array([-0.01840777, 0.0398835, 0.22242722, -0.00460194, 1.36524296, 0.00153398, 0.037, 0.037])
"""Joints of the arm at the start: six angles, two fingers' travel."""
ROTATIONS = np.arange(4) * np.pi / 4
"""Yaws of the object in training."""
UNSEEN_ROTATIONS = -np.pi / 8 * np.array([1, 3, 5, 7])


def _square(cells: Vectors) -> Vectors:
    return CENTRE + HALF_EDGE * (2 * cells - 1)


@cache
def grid() -> Vectors:
    """[36, 2] the training positions."""
    return _square(np.array(list(product(np.arange(6) / 5, repeat=2))))


@cache
def ring() -> Vectors:
    """[28, 2] positions on a square around the grid, a cell outside it."""
    steps = np.arange(-1, 7) / 5
    return _square(np.array([cell for cell in product(steps, repeat=2) if min(cell) < 0 or max(cell) > 1.1]))


@cache
def pairs(unseen: bool = False) -> Vectors:
    """[784, 2, 2] object and plate on the training grid; [N, 2, 2] both on the ring where `unseen`."""
    points = ring() if unseen else grid()
    first, second = np.nonzero(_distances(points) > APART)
    return np.stack([points[first], points[second]], 1)


@cache
def triples(extra: str) -> Vectors:
    """[N, 3, 2] object, plate and a third place on the training grid: for another `object`, far from the first, or
    another `plate`, far from the first.
    """
    points, apart = grid(), _distances(grid())
    near, far = apart > APART, apart > FAR_APART
    with_object, with_plate = (far, near) if extra == "object" else (near, far)
    chosen = near[:, :, None] & with_plate[None] & with_object[:, None]
    return np.stack([points[place] for place in np.nonzero(chosen)], 1)


@cache
def arm_starts() -> Vectors:
    """[N, 8] other starts of the arm than training's: every joint turned by up to 0.15 radians, the last by up to 0.6,
    shoulder and elbow together by 0.25 at most.
    """
    turns = (-0.15, -0.08, 0.0, 0.08, 0.15)
    offsets = np.array(list(product(*[turns] * 5, (-0.6, -0.3, 0.0, 0.3, 0.6))))
    offsets = offsets[np.abs(offsets[:, 1] + offsets[:, 2]) <= 0.25]
    return START + np.pad(offsets, ((0, 0), (0, 2)))


def _distances(points: Vectors) -> Vectors:
    return np.linalg.norm(points[:, None] - points, axis=-1)
