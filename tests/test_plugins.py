"""Modules that a setting names."""

import sys
from pathlib import Path

import pytest

from treadle.errors import ConfigError
from treadle.plugins import import_callable


def test_a_module_of_the_current_folder_is_found_where_no_other_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"simulator.name: cannot import 'dots_here:Dots'"):
        import_callable("simulator.name", "dots_here:Dots", "class")
    (tmp_path / "dots_here.py").write_text("class Dots: ...")
    (tmp_path / "json.py").write_text("raise RuntimeError")
    assert import_callable("simulator.name", "dots_here:Dots", "class").__module__ == "dots_here"
    assert sys.path[-1] == str(tmp_path), "where workers find it too, and it hides nothing"
    assert import_callable("simulator.name", "json:JSONDecoder", "class").__module__ == "json.decoder"


def test_what_a_module_of_the_current_folder_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dots_there.py").write_text("import absent_module")
    with pytest.raises(ConfigError, match="No module named 'absent_module'"):
        import_callable("simulator.name", "dots_there:Dots", "class")
