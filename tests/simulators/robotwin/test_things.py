"""Things of boxes: their files, without RoboTwin."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from treadle.simulators.robotwin.things import KINDS, POT, write_things


def test_a_mesh_is_a_box_that_stands_on_its_origin(tmp_path: Path):
    write_things(tmp_path)
    lines = [line.split() for line in (tmp_path / "001_bottle" / "textured13.obj").read_text().splitlines()]
    corners = np.array([line[1:] for line in lines if line[0] == "v"], float)
    faces = np.array([line[1:] for line in lines if line[0] == "f"], int) - 1
    assert corners.min(0).tolist() == [-0.025, 0, -0.025]
    assert corners.max(0).tolist() == [0.025, 0.14, 0.025]
    # A closed surface that faces outwards encloses its volume.
    volume = np.linalg.det(corners[faces]).sum() / 6
    np.testing.assert_allclose(volume, 0.05 * 0.14 * 0.05)
    assert (tmp_path / "001_bottle" / "textured13.mtl").read_text() == "newmtl all\nKd 0.1 0.45 0.2\n"


def test_a_model_says_how_large_it_is_and_where_it_is_held(tmp_path: Path):
    write_things(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*KINDS, POT}
    cup = json.loads((tmp_path / "021_cup" / "model_data7.json").read_text())
    assert cup["extents"] == [0.06, 0.08, 0.06]
    assert cup["functional_matrix"][0] == np.eye(4).tolist()
    pot = json.loads((tmp_path / POT / "6" / "model_data.json").read_text())
    assert [point["matrix"][0][3] for point in pot["contact_points"]] == [-0.1, 0.1]


def test_a_pot_has_two_links_that_hold_together(tmp_path: Path):
    write_things(tmp_path)
    robot = ElementTree.parse(tmp_path / POT / "0" / "mobility.urdf").getroot()
    assert [link.get("name") for link in robot.findall("link")] == ["body", "lid"]
    # Body and two handles, each seen and felt.
    assert [len(link) for link in robot.findall("link")] == [6, 2]
    (joint,) = robot.findall("joint")
    assert joint.get("type") == "fixed"
