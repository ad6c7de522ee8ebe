"""A stand-in for RoboTwin's package: sources and texts are read, never run."""

import json
from pathlib import Path

import pytest

from treadle.simulators.robotwin import instructions, simulator, tasks

HAMMER = """
class beat_block_hammer(Base_Task):
    def load_actors(self):
        self.hammer = create_actor(scene=self, modelname="020_hammer", convex=True, model_id=0)
"""
BOTTLES = """
class pick_dual_bottles(Base_Task):
    def load_actors(self):
        self.first = rand_create_actor(self, modelname="001_bottle", model_id=13)
        self.second = rand_create_actor(self, modelname="001_bottle", model_id=self.which)
        self.pad = create_actor(self, modelname="019_coaster")
"""
TEXTS = {
    "beat_block_hammer": {"full_description": "use the arm to <grab the hammer> and <beat the block>"},
    "pick_dual_bottles": {"full_description": "pick up <two bottles>"},
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small `robotwin` package with two tasks."""
    folder = tmp_path / "robotwin"
    described = folder / "description"
    (folder / "envs").mkdir(parents=True)
    (folder / "envs" / "beat_block_hammer.py").write_text(HAMMER)
    (folder / "envs" / "pick_dual_bottles.py").write_text(BOTTLES)
    (described / "task_instruction").mkdir(parents=True)
    for task, texts in TEXTS.items():
        (described / "task_instruction" / f"{task}.json").write_text(json.dumps(texts))
    for module in (tasks, instructions):
        monkeypatch.setattr(module, "package_folder", lambda: folder)
    assert simulator.task_source("beat_block_hammer") == HAMMER
    return folder
