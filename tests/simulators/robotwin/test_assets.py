"""Missing assets are named file by file; the miniature ones are whole."""

import shutil
from pathlib import Path

import pytest

from treadle.errors import ConfigError
from treadle.simulators.robotwin import simulator, tasks
from treadle.simulators.robotwin.assets import check_assets, missing_assets


@pytest.fixture
def root(tmp_path, package):
    folder = tmp_path / "assets root"
    shutil.copytree(Path(simulator.__file__).parent / simulator.MINIATURE, folder)
    return folder


def missing(root, task="beat_block_hammer", *, randomized=False) -> list[str]:
    found = missing_assets(root, [tasks.task_source(task)], ["piper", "piper"], randomized=randomized)
    return [path.relative_to(root / "assets").as_posix() for path in found]


def test_the_miniature_set_is_whole_and_small(root):
    assert missing(root) == []
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) <= 10
    assert sum(path.stat().st_size for path in files) < 20_000


def test_every_missing_file_is_named(root):
    arm = root / "assets" / "embodiments" / "piper"
    (arm / "curobo_left_tmp.yml").unlink()
    (arm / "arm.urdf").unlink()
    (root / "assets" / "objects" / "020_hammer" / "textured0.obj").unlink()
    (root / "assets" / "objects" / "020_hammer" / "model_data0.json").unlink()
    assert missing(root) == [
        "embodiments/piper/curobo_left_tmp.yml",
        "embodiments/piper/arm.urdf",
        "objects/020_hammer/model_data0.json",
        "objects/020_hammer/base0.glb",
    ]


def test_a_model_may_have_any_of_its_places(root):
    hammer = root / "assets" / "objects" / "020_hammer"
    (hammer / "visual").mkdir()
    (hammer / "textured0.obj").rename(hammer / "visual" / "base0.glb")
    assert missing(root) == []


def test_meshes_of_an_arm_are_looked_for(root):
    urdf = root / "assets" / "embodiments" / "piper" / "arm.urdf"
    urdf.write_text('<robot><link><visual><geometry><mesh filename="meshes/a.dae"/></geometry></visual></link></robot>')
    assert missing(root) == ["embodiments/piper/meshes/a.dae"]


def test_objects_and_backgrounds_that_are_not_there(root):
    assert missing(root, "pick_dual_bottles") == ["objects/001_bottle", "objects/019_coaster"]
    assert missing(root, randomized=True) == ["background_texture/unseen/0.png"]


def test_the_error_says_where_assets_come_from(root):
    shutil.rmtree(root / "assets" / "objects")
    with pytest.raises(ConfigError) as caught:
        check_assets(root, [tasks.task_source("beat_block_hammer")], ["piper"], randomized=False)
    said = str(caught.value)
    assert "simulator.options.assets: 1 missing" in said
    assert "objects/020_hammer" in said
    assert "robotwin-download-assets --output FOLDER" in said
