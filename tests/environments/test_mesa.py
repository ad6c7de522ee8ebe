"""Vulkan drivers: what is there is used; what is lacking is named. Fetching one is tested by installing."""

import pytest

from treadle.environments import mesa
from treadle.errors import SimulatorError


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without a graphics card or Vulkan drivers."""
    monkeypatch.setattr(mesa, "_has_graphics_card", lambda: False)
    monkeypatch.setattr(mesa, "_ICD", tmp_path / "system")
    return tmp_path


def driver(folder):
    folder.mkdir(parents=True)
    (folder / "lvp_icd.x86_64.json").write_text("{}")
    return folder / "lvp_icd.x86_64.json"


def test_a_graphics_card_needs_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(mesa, "_has_graphics_card", lambda: True)
    assert mesa.prepare_vulkan(tmp_path) == {}


def test_a_recent_driver_of_the_system_is_taken(bare, monkeypatch):
    found = driver(bare / "system")
    monkeypatch.setattr(mesa, "_mesa_release", lambda: 25)
    assert mesa.prepare_vulkan(bare) == {"VK_ICD_FILENAMES": str(found)}


def test_what_was_unpacked_is_used_again(bare, monkeypatch):
    monkeypatch.setattr(mesa, "_run", lambda command: pytest.fail("nothing is to be run"))
    found = driver(bare / "mesa/usr/share/vulkan/icd.d")
    libraries = bare / "mesa/usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (libraries / "libvulkan_lvp.so").touch()
    assert mesa.prepare_vulkan(bare) == {"VK_ICD_FILENAMES": str(found), "LD_LIBRARY_PATH": str(libraries)}


def test_without_apt_the_fix_is_named(bare, monkeypatch):
    monkeypatch.setattr(mesa.shutil, "which", lambda name: None)
    driver(bare / "system")  # which is too old, as far as can be told
    with pytest.raises(SimulatorError, match=r"no apt-get.*Debian 13, Ubuntu 24\.04: apt-get install mesa-vulkan"):
        mesa.prepare_vulkan(bare)


def test_a_failing_command_is_told(bare):
    with pytest.raises(SimulatorError, match=r"`ls /nowhere` failed: .*/nowhere"):
        mesa._run(["ls", "/nowhere"])
