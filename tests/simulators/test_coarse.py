import numpy as np
import pytest

from treadle.simulators.coarse import cell_size, coarsen


def sheet(count: int, side: float) -> tuple[np.ndarray, np.ndarray]:
    """A flat square of `count` x `count` squares, two triangles each, seen from above."""
    x, y = np.meshgrid(np.linspace(0, side, count + 1), np.linspace(0, side, count + 1))
    vertices = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], 1).astype(np.float32)
    corner = (np.arange(count)[:, None] * (count + 1) + np.arange(count)).ravel()
    right, up, across = corner + 1, corner + count + 1, corner + count + 2
    return vertices, np.concatenate([np.stack([corner, right, across], 1), np.stack([corner, across, up], 1)])


def area(vertices: np.ndarray, triangles: np.ndarray) -> float:
    """Signed, as seen from above."""
    a, b, c = (vertices[triangles[:, i], :2] for i in range(3))
    one, other = b - a, c - a
    return float((one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]).sum() / 2)


def test_a_pixel_of_a_small_picture_is_large():
    assert cell_size(64) == pytest.approx(0.0125)


def test_worked_by_hand():
    # Vertices 0, 1 and 4 share the first cell; 1 is the nearest to their middle, which is at 0.35.
    vertices = np.array([[0, 0, 0], [0.5, 0, 0], [12, 0, 0], [0, 12, 0], [0.55, 0, 0]], np.float32)
    triangles = np.array([[0, 2, 3], [0, 1, 2], [1, 2, 3], [3, 1, 2], [3, 2, 4]])
    places, kept = coarsen(vertices, triangles, 1.0)
    assert places.tolist() == [1, 1, 2, 3, 1]
    assert kept.tolist() == [0, 4]  # the second is a line, two repeat the first, and the last is its back


def test_a_sheet_has_a_sixteenth_of_its_triangles_and_its_area():
    vertices, triangles = sheet(64, 1.0)
    places, kept = coarsen(vertices, triangles, 1 / 16)
    assert len(kept) < len(triangles) / 14
    # Borders move inwards by less than a cell.
    assert 0.88**2 < area(vertices[places], triangles[kept]) <= 1
    assert np.abs(vertices[places] - vertices).max() < 1 / 16 + 1e-6


def test_small_things_keep_their_shape():
    vertices, triangles = sheet(48, 0.05)
    _, kept = coarsen(vertices, triangles, 1.0)
    assert len(kept) >= 2 * 11 * 11


def test_a_mesh_without_extent_stays():
    places, kept = coarsen(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]]), 0.1)
    assert (places.tolist(), kept.tolist()) == ([0, 1, 2], [0])
