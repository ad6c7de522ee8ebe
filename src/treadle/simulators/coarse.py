"""Meshes with fewer triangles, for small pictures that are drawn on a CPU, where the number of triangles decides.

Shapes: V vertices, T triangles, K of them kept.
"""

import numpy as np
from numpy.typing import NDArray

_SIDE = 12
"""Cells along the longest side of a mesh, at least, so that small things keep their shape."""


def cell_size(image_size: int) -> float:
    """Metres that a pixel shows, about, of a table in a picture with `image_size` pixels a side."""
    return 0.8 / image_size


def coarsen(
    vertices: NDArray[np.float32], triangles: NDArray[np.integer], cell: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Merge the vertices of each cell of a grid: vertex clustering, after Rossignac and Borrel, 1993.

    Args:
        vertices: [V, 3] metres.
        triangles: [T, 3] vertices, in the order that shows a triangle's front.
        cell: metres of a cell's side; smaller for a mesh that is less than `_SIDE` cells long.

    Returns:
        [V] the vertex that stands for each, the one nearest to the middle of those in its cell; and [K] triangles that
        remain, which are neither a line, nor the same as an earlier one.
    """
    extent = float(np.ptp(vertices, axis=0).max(initial=0.0))
    cell = min(cell, extent / _SIDE)
    if cell <= 0:
        return np.arange(len(vertices)), np.arange(len(triangles))
    keys = np.floor((vertices - vertices.min(0)) / cell).astype(np.int64)
    _, group, count = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    middle = np.stack([np.bincount(group, axis) for axis in vertices.T], 1) / count[:, None]
    off = np.linalg.norm(vertices - middle[group], axis=1)
    order = np.lexsort((off, group))
    nearest = order[np.r_[0, np.cumsum(count)[:-1]]]
    corners = group[triangles]
    solid = np.flatnonzero((corners != np.roll(corners, 1, 1)).all(1))
    # Begin each with its least corner, so that equal triangles are equal rows and the two faces of a sheet are not.
    first = corners[solid].argmin(1)[:, None]
    turned = np.take_along_axis(corners[solid], (first + np.arange(3)) % 3, 1)
    kept = np.unique(turned, axis=0, return_index=True)[1]
    return nearest[group], solid[np.sort(kept)]
