"""The doctor: a line for each thing, works or missing with the fix."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from treadle import doctor
from treadle.cli import app
from treadle.doctor import Check, check_table, core_works


def test_this_machine_works(tmp_path):
    path = tmp_path / "doctor.json"
    result = CliRunner().invoke(app, ["doctor", "--json", str(path)])
    assert result.exit_code == 0, result.output
    checks = {check["name"]: check for check in json.loads(path.read_text())["checks"]}
    for name in ("Python", "torch", "transformers", "MuJoCo", "simulator tabletop", "disk", "memory"):
        assert checks[name]["state"] == "works", checks[name]
    assert {"CPU", "CUDA", "OpenGL", "Vulkan"} <= checks.keys()
    assert all(check["fix"] for check in checks.values() if check["state"] == "missing")


def test_only_what_everything_needs_decides(monkeypatch):
    optional = Check("Vulkan", "missing", "no driver", "install it", core=False)
    needed = Check("torch", "missing", "not installed [at all]", "make setup")
    assert core_works([optional])
    assert not core_works([optional, needed])
    monkeypatch.setattr(doctor, "examine", lambda: [optional, needed])
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "not installed [at all]" in result.stdout
    assert "make setup" in result.stdout


def test_a_simulator_that_fails_is_named_with_its_last_words():
    check = doctor._simulator("no_such_package.simulator:Class")
    assert check.state == "missing"
    assert "no_such_package" in check.detail
    assert not check.core


def test_a_simulator_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.01)
    assert "no answer" in doctor._simulator("tabletop").detail


def test_a_missing_library_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "_loadable", lambda library: False)
    assert [check.state for check in (doctor._opengl(), doctor._vulkan())] == ["missing", "missing"]
    monkeypatch.setattr(doctor, "_loadable", lambda library: True)
    assert doctor._opengl().state == "works"


def test_little_disk_is_missing_with_the_fix(monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED_DISK_GB", 1e12)
    check = doctor._disk()
    assert (check.state, check.core) == ("missing", True)
    assert "free some" in check.fix


@pytest.mark.parametrize("width", [40, 200])
def test_the_table_fits(width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(check_table([Check("a" * 30, "works", "b" * 90)]))
    assert all(len(line) <= width for line in console.export_text().splitlines())
