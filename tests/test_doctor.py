"""The doctor: a line for each thing, works or missing with the fix."""

import json
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest
import torch
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
    assert {"CPU", "CUDA", "NCCL", "FSDP2", "Ray", "OpenGL", "Vulkan"} <= checks.keys()
    assert all(check["fix"] for check in checks.values() if check["state"] != "works")


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
    assert "Treadle cannot work here: torch." in result.stdout


def test_all_is_green_where_options_that_nobody_took_are_not_here(monkeypatch):
    checks = [Check("torch", "works", "2.13.0"), Check("CUDA", "absent", "no device", "for large ones", core=False)]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "Everything that is here works." in result.stdout
    assert "not here" in result.stdout
    assert "missing" not in result.stdout
    broken = Check("simulator libero", "missing", "no answer in 300 s", "see", core=False)
    assert "works here; to mend, where you need it: simulator libero." in str(doctor.verdict([*checks, broken]))


def test_a_simulator_that_fails_is_named_with_its_last_words():
    check = doctor._simulator("no_such_package.simulator:Class")
    assert check.state == "missing"
    assert "no_such_package" in check.detail
    assert not check.core


def test_a_family_of_simulators_is_looked_at_by_id():
    """`gymnasium` alone is no environment, and was broken on every machine."""
    check = doctor._simulator("gymnasium")
    assert (check.state, check.fix) == ("works", "")
    assert check.detail.endswith("treadle simulators doctor gymnasium:ID")


def test_a_simulator_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.01)
    assert "no answer" in doctor._simulator("tabletop").detail


def test_a_missing_library_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "_loadable", lambda library: False)
    monkeypatch.setattr(doctor, "_own_drivers", dict)
    assert [check.state for check in (doctor._opengl(), doctor._vulkan())] == ["absent", "absent"]
    assert "libvulkan does not load" in doctor._vulkan().detail
    monkeypatch.setattr(doctor, "_loadable", lambda library: True)
    assert doctor._opengl().state == "works"


def test_a_simulator_may_bring_its_own_vulkan_driver(monkeypatch):
    """As ManiSkill's and RoboTwin's environments do where the system has none that runs their shaders."""
    stamps = {
        "maniskill": {"variables": {"VK_ICD_FILENAMES": "/envs/maniskill/mesa/lvp_icd.x86_64.json"}},
        "libero": {"variables": {}},
        "robotwin": None,
    }
    monkeypatch.setattr(doctor, "installed_simulators", lambda: [*stamps, "tabletop"])
    monkeypatch.setattr(
        doctor,
        "simulator_environment",
        lambda name: SimpleNamespace(stamp=lambda: stamps[name]) if name in stamps else None,
    )
    monkeypatch.setattr(doctor, "_loadable", lambda library: False)
    check = doctor._vulkan()
    assert (check.state, check.detail) == ("works", "maniskill has its own driver, lvp_icd.x86_64.json")


def test_a_simulator_that_nobody_installed_is_not_here(monkeypatch):
    environment = SimpleNamespace(stamp=lambda: None, unmet_here=lambda: ["libero==1"])
    monkeypatch.setattr(doctor, "simulator_environment", lambda name: environment)
    fix = "treadle simulators install libero"
    assert doctor._simulator("libero") == Check("simulator libero", "absent", "not installed", fix, core=False)


def test_extras_have_their_versions_or_the_command_that_installs_them(monkeypatch):
    wanted = ["torch>=2", "msgpack>=1.1; extra == 'serve'", "websockets>=14; extra == 'serve'"]
    monkeypatch.setattr(doctor, "requires", lambda name: [*wanted, "rerun-sdk>=0.23; extra == 'rerun'"])
    versions = {"msgpack": "1.1", "websockets": "15.0"}

    def look(name):
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor, "version", look)
    serve, rerun = doctor._extras()
    assert (serve.state, serve.detail) == ("works", "msgpack 1.1, websockets 15.0")
    assert (rerun.state, rerun.detail) == ("absent", "rerun-sdk is not installed")
    assert rerun.fix == "for episodes in Rerun only: pip install 'treadle[rerun]'"


def test_little_disk_is_missing_with_the_fix(monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED_DISK_GB", 1e12)
    check = doctor._disk()
    assert (check.state, check.core) == ("missing", True)
    assert "free some" in check.fix


def fake_torch(cards=(), cuda="13.0"):
    """As much of torch as the doctor asks, with these cards: names and bytes."""
    properties = [SimpleNamespace(name=name, total_memory=memory) for name, memory in cards]
    cuda_module = SimpleNamespace(
        is_available=lambda: bool(cards),
        device_count=lambda: len(cards),
        get_device_properties=lambda i: properties[i],
        is_bf16_supported=lambda: True,
        nccl=SimpleNamespace(version=lambda: (2, 29, 3)),
    )
    distributed = SimpleNamespace(is_available=lambda: True, is_nccl_available=lambda: cuda is not None)
    return SimpleNamespace(
        __version__="2.13.0", cuda=cuda_module, version=SimpleNamespace(cuda=cuda), distributed=distributed
    )


OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  \nGCC version: 12"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54  Thu Feb 22 01:44:30 UTC 2024\n"


@pytest.mark.parametrize(("text", "driver"), [(OPEN, "580.95.05"), (CLOSED, "550.54"), ("what?", None)])
def test_the_driver_says_its_version(monkeypatch, tmp_path, text, driver):
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    assert doctor._driver() is None
    (tmp_path / "version").write_text(text)
    assert doctor._driver() == driver


def test_graphics_cards_have_counts_names_memory_and_versions(monkeypatch):
    monkeypatch.setattr(doctor, "_driver", lambda: "580.95.05")
    cards = [("NVIDIA H200", 140 * 2**30), ("NVIDIA H200", 140 * 2**30), ("NVIDIA L4", 22 * 2**30)]
    check = doctor._cuda(fake_torch(cards))
    assert (check.state, check.core) == ("works", False)
    assert check.detail == (
        "2 x NVIDIA H200 (140 GiB), 1 x NVIDIA L4 (22 GiB); driver 580.95.05, torch for CUDA 13.0; bf16 yes"
    )


@pytest.mark.parametrize(
    ("driver", "cuda", "state", "detail", "fix"),
    [
        (None, None, "absent", "torch was built without it", "runs on a CPU"),
        (None, "13.0", "absent", "no driver was found; torch for CUDA 13.0", "on a CPU"),
        ("550.54", None, "missing", "torch does not see the graphics card; driver 550.54", "CUDA that driver 550.54"),
    ],
)
def test_why_there_is_no_graphics_card(monkeypatch, driver, cuda, state, detail, fix):
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    check = doctor._cuda(fake_torch(cuda=cuda))
    assert (check.state, check.core) == (state, False)
    assert check.detail.startswith(detail)
    assert fix in check.fix


def test_nccl_has_its_version():
    assert doctor._nccl(fake_torch([("NVIDIA H200", 2**37)])).detail == "2.29.3"
    check = doctor._nccl(fake_torch(cuda=None))
    assert (check.state, check.core, check.detail) == ("absent", False, "torch was built without it")
    assert "gloo takes its place" in check.fix


def test_fsdp2_needs_a_new_torch(monkeypatch):
    assert doctor._fsdp2(fake_torch()).state == "works"
    monkeypatch.delattr(torch.distributed, "all_gather_single")
    check = doctor._fsdp2(fake_torch())
    assert (check.state, check.core, check.detail) == ("absent", False, "torch 2.13.0 is too old")
    assert "torch 2.13 or later" in check.fix


def test_ray_has_its_version_or_the_command_that_installs_it(monkeypatch):
    assert doctor._ray() == Check("Ray", "works", version("ray"), core=False)

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    check = doctor._ray()
    assert (check.state, check.core) == ("absent", False)
    assert "pip install 'treadle[ray]'" in check.fix


def test_without_torch_ray_alone_is_looked_at(monkeypatch):
    monkeypatch.setattr(doctor, "_import", lambda name: (None, "ImportError"))
    assert [check.name for check in doctor.examine_devices()] == ["Ray"]


@pytest.mark.parametrize("width", [40, 200])
def test_the_table_fits(width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(check_table([Check("a" * 30, "works", "b" * 90)]))
    assert all(len(line) <= width for line in console.export_text().splitlines())


def test_the_command_that_shows_all_can_be_typed(monkeypatch):
    """`python` is another one where the environment is not activated."""
    monkeypatch.setattr(doctor.sys, "executable", "/envs/a b/bin/python")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/python")
    assert doctor._again("x") == "see all of it with: '/envs/a b/bin/python' -m treadle.commands.probe x"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/envs/a b/bin/python")
    assert doctor._again("x") == "see all of it with: python -m treadle.commands.probe x"
