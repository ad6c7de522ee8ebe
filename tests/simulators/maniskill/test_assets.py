"""The generated set is whole; what is missing is named; the arm has the WidowX's kinematics."""

import json
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from treadle.errors import SimulatorError
from treadle.simulators.build import simulator_environment
from treadle.simulators.maniskill.put_on_plate import assets
from treadle.simulators.maniskill.put_on_plate.generate import OBJECT_SHAPES, PLATE_SHAPES, mesh
from treadle.simulators.maniskill.put_on_plate.placements import START


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("assets") / "set"
    assets.generated(made)
    return made


def test_the_generated_set_is_whole(folder):
    found = assets.generated(folder)
    assert (len(found.objects), len(found.plates), len(found.tables)) == (25, 17, 21)
    assert len({thing.words for thing in (*found.objects, *found.plates)}) == 42
    assert assets.words(None) == assets.words(found)
    assert all(min(thing.size) <= 0.045 for thing in found.objects), "the gripper opens to 7.6 cm"
    assert found.stage is None


def test_missing_downloads_come_with_commands_of_the_interpreter_that_has_them(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    environment = simulator_environment("maniskill")
    with pytest.raises(SimulatorError) as here:
        assets.published(folder)
    monkeypatch.setattr(assets, "find_spec", lambda name: name)
    with pytest.raises(SimulatorError) as there:
        assets.published(folder)
    for caught, python in ((here, environment.executable), (there, sys.executable)):
        for uid in ("widowx250s", "bridge_v2_real2sim"):
            assert f"`{python} -m mani_skill.utils.download_asset -y {uid}`" in str(caught.value)


def test_missing_files_are_named(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    with pytest.raises(SimulatorError, match=r"wx250s\.urdf, .*bridge_table_1_v1\.glb; name the published folder"):
        assets.published(folder)
    with pytest.raises(SimulatorError, match=r"more_table/model_db\.json is missing"):
        assets.published(tmp_path)
    names = json.loads((folder / "more_plate/model_db.json").read_text())
    gone = folder / "more_plate" / next(iter(names)) / "collision.obj"
    kept = gone.read_text()
    gone.unlink()
    with pytest.raises(SimulatorError, match=f"missing {gone}"):
        assets.generated(folder)
    gone.write_text(kept)


@pytest.mark.parametrize("shape", [*OBJECT_SHAPES, *PLATE_SHAPES], ids=lambda shape: shape.words)
def test_meshes_are_of_their_size_and_face_outward(shape):
    corners, faces = mesh(shape)
    assert np.allclose(np.ptp(corners, axis=0), shape.size)
    assert np.allclose(corners.max(0), -corners.min(0))
    volume = 0.0
    for face in faces:
        a = corners[face[0]]
        for b, c in zip(corners[face[1:-1]], corners[face[2:]], strict=True):
            volume += np.dot(a, np.cross(b, c)) / 6
    box = np.prod(shape.size)
    assert 0.45 * box < volume <= box * (1 + 1e-9)


def tool(joints):
    """Place and pointing direction of the tool by the description's own chain."""
    elements = {joint.find("child").get("link"): joint for joint in ET.parse(assets.ARM_OF_BOXES).findall("joint")}
    values = dict(
        zip(("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"), joints, strict=True)
    )
    chain, link = [], "ee_gripper_link"
    while link in elements:
        chain.append(elements[link])
        link = elements[link].find("parent").get("link")
    place, turned = np.zeros(3), np.eye(3)
    for joint in reversed(chain):
        place = place + turned @ np.array([float(part) for part in joint.find("origin").get("xyz").split()])
        angle = values.get(joint.get("name"), 0.0)
        if angle:
            x, y, z = (float(part) for part in joint.find("axis").get("xyz").split())
            cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            turned = turned @ (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)
    return place, turned[:, 0]


def test_the_arm_reaches_where_a_widowx_does():
    place, ahead = tool(np.zeros(6))
    assert np.allclose(place, [0.458325, 0, 0.36065], atol=1e-6)
    assert np.allclose(ahead, [1, 0, 0])
    place, ahead = tool(START[:6])
    assert place == pytest.approx([0.29, 0.0, 0.135], abs=0.01), "over the training square, 13 cm above the table"
    assert ahead[2] < -0.99, "pointing down"
