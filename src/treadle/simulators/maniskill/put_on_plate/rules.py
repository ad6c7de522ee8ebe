"""When an object lies on a plate, and how far along an episode is. Arrays may be NumPy's or torch's.

Shapes: R rows.
"""

from typing import Any

MARGIN = 0.01
"""Metres beyond the plate's half extent that still count as on it."""
WINDOW = 0.05
"""Metres of height that the object may lie above the plate's top."""
FORCE = 0.03
"""Newtons with which object and plate press on each other, at least."""
HELD_STEPS = 5
"""Control steps in a row that count as holding the object."""


def on_plate(object_at: Any, plate_at: Any, object_half: Any, plate_half: Any, force: Any) -> Any:
    """[R] whether the object lies on the plate: centre within the plate's largest half extent and `MARGIN`, above it by
    `WINDOW` at most, and in contact.

    Args:
        object_at: [R, 3] centre of the object, metres; plate_at likewise.
        plate_at: [R, 3]
        object_half: [R, 3] half extents along the world's axes, as things lay at the start; plate_half likewise.
        plate_half: [R, 3]
        force: [R] newtons between the two.
    """
    offset = object_at - plate_at
    across = (offset[:, :2] ** 2).sum(-1) ** 0.5
    reach = plate_half[:, 0]
    for axis in (1, 2):
        longer = plate_half[:, axis] > reach
        reach = longer * plate_half[:, axis] + ~longer * reach
    above = offset[:, 2]
    low = above - plate_half[:, 2] - object_half[:, 2] <= WINDOW
    return (across <= reach + MARGIN) & (above > 0) & low & (force > FORCE)


def score(grasped: Any, held: Any, success: Any) -> Any:
    """[R] 0.1 once the object was grasped, 0.1 once it was held, 1 while it lies on the plate after a grasp."""
    return 0.1 * grasped + 0.1 * held + 1.0 * (success & grasped)
