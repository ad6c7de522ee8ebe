"""The tiny checkpoint that lerobot 0.4.4 wrote, and what its samples are asked to do."""

from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).parents[2] / "fixtures" / "smolvla_tiny"
HEADS: dict[str, Any] = {"head": 8, "vision_head": 8}
"""What no file of a LeRobot directory says, and is not SmolVLM2's."""
TASKS = ["pick up the red cube", "push the cube\n", "pick blue"]
