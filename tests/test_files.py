"""Folders that are replaced: the old one or the new one is there, whole, whenever the process ends."""

import shutil
from pathlib import Path

import pytest

from treadle.files import replace_directory


def make(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(text)
    return folder


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    directory = make(tmp_path / "there", "old")
    replace_directory(make(tmp_path / "new", "new"), directory)
    assert (directory / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_kill_while_the_old_is_removed_leaves_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make(tmp_path / "there", "old")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        replace_directory(make(tmp_path / "new", "new"), directory)
    assert (directory / "file").read_text() == "new"
