import re
from pathlib import Path
from xml.etree import ElementTree

from treadle.reporting.supervised import write_curves


def test_each_stage_that_was_run_is_drawn(tmp_path: Path) -> None:
    rows = [
        {"iteration": 1, "seconds": 60.0, "detection/object_error": 0.012, "detection/plate_error": 0.004},
        {"iteration": 2, "seconds": 120.0, "detection/object_error": 0.006, "detection/plate_error": 0.003},
        {"iteration": 3, "seconds": 180.0, "imitation/loss": 4.0},
        {"iteration": 4, "seconds": 240.0, "imitation/loss": 2.5},
    ]
    assert [path.name for path in write_curves(tmp_path, rows)] == ["perception.svg", "imitation.svg"]
    drawn = (tmp_path / "perception.svg").read_text()
    ElementTree.fromstring(drawn)
    assert "object, towers alone" in drawn
    assert "named object" not in drawn
    (line,) = re.findall(r'class="line s0" d="(.*?)"', drawn)
    (_, high), (_, low) = [tuple(map(float, point.split())) for point in line[1:].split("L")]
    assert high < low, "an error that shrinks falls"
    assert [path.name for path in write_curves(tmp_path, rows[2:])] == ["imitation.svg"]
