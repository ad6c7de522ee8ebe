"""What works on this machine, what is missing, and how to mend it."""

import ctypes
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from treadle.commands.simulators import assets_text
from treadle.config.schema import SimulatorConfig
from treadle.errors import TreadleError
from treadle.simulators.build import installed_simulators, simulator_environment
from treadle.simulators.install import missing_packages, packages_fix

PROBE_SECONDS = 300.0
NEEDED_DISK_GB = 2.0
NEEDED_MEMORY_GB = 4.0

State = Literal["works", "missing"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    detail: str
    fix: str = ""
    core: bool = True
    """Whether Treadle cannot work without it; the rest is for some simulators or devices only."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def examine() -> list[Check]:
    """All checks, in the order in which they are shown. Imports torch and MuJoCo; takes some seconds."""
    looks: Sequence[Callable[[], list[Check]]] = (
        _python, _torch, _transformers, _mujoco, _opengl, _vulkan, _simulators, _disk, _memory
    )  # fmt: skip
    return [check for look in looks for check in look()]


def examine_simulators(names: Sequence[str]) -> list[Check]:
    """A check for each simulator, or for all that are installed where none is named."""
    return [_simulator(name) for name in names or installed_simulators()]


def core_works(checks: Sequence[Check]) -> bool:
    """Whether nothing that everything needs is missing."""
    return all(check.state == "works" for check in checks if check.core)


def check_table(checks: Sequence[Check]) -> Table:
    """A line for each check."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "", "found, and what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        if check.state == "works":
            mark = Text("works", "green")
        else:
            mark = Text("missing", "bold red") if check.core else Text("missing, optional", "yellow")
        found = Text(check.detail)
        if check.fix:
            found.append(f"\n{check.fix}", "bold" if check.core else "")
        table.add_row(Text(check.name, "bold"), mark, found)
    return table


def _python() -> list[Check]:
    found = sys.version.split()[0]
    if (3, 11) <= sys.version_info < (3, 14):
        return [Check("Python", "works", found)]
    return [Check("Python", "missing", found, "use Python 3.11, 3.12 or 3.13: make setup PYTHON=...")]


def _torch() -> list[Check]:
    torch, problem = _import("torch")
    if torch is None:
        return [Check("torch", "missing", problem, "make setup")]
    checks = [Check("torch", "works", f"{torch.__version__}, {torch.get_num_threads()} threads"), _cpu(torch)]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        checks.append(
            Check("CUDA", "works", f"{', '.join(names)}; bf16 {_yes(torch.cuda.is_bf16_supported())}", core=False)
        )
    else:
        reason = "torch was built without it" if torch.version.cuda is None else "no device or driver was found"
        checks.append(
            Check("CUDA", "missing", reason, "needed for large policies only; the quickstart runs on a CPU", core=False)
        )
    if torch.backends.mps.is_available():
        checks.append(Check("MPS", "works", "Apple GPU", core=False))
    return checks


def _cpu(torch: Any) -> Check:
    flags: set[str] = set()
    if sys.platform == "linux":
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
        flags = set(lines[0].split()) if lines else set()
    native = sorted(flags & {"avx512_bf16", "amx_bf16", "bf16", "avx_ne_convert"})
    bf16 = f"bf16 in hardware ({', '.join(native)})" if native else "bf16 emulated, float32 is faster"
    return Check(
        "CPU", "works", f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {bf16}", core=False
    )


def _transformers() -> list[Check]:
    # The version alone: importing it takes seconds, and what breaks it breaks torch first.
    try:
        return [Check("transformers", "works", version("transformers"))]
    except PackageNotFoundError:
        return [Check("transformers", "missing", "not installed", "make setup")]


def _mujoco() -> list[Check]:
    mujoco, problem = _import("mujoco")
    if mujoco is None:
        return [Check("MuJoCo", "missing", problem, "make setup")]
    ball = "<mujoco><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>"
    model = mujoco.MjModel.from_xml_string(ball)
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data)
    if data.qvel[2] < 0:
        return [Check("MuJoCo", "works", f"{mujoco.__version__}, a ball falls")]
    return [
        Check(
            "MuJoCo",
            "missing",
            f"{mujoco.__version__}, but a ball does not fall",
            "reinstall: pip install --force-reinstall mujoco",
        )
    ]


def _opengl() -> list[Check]:
    found = [name for name in ("libEGL.so.1", "libOSMesa.so.8", "libOSMesa.so.6") if _loadable(name)]
    if found:
        return [Check("OpenGL", "works", f"{', '.join(found)} loads", core=False)]
    fix = "for simulators that draw with it (LIBERO); tabletop does not. On Debian: apt install libegl1 libosmesa6"
    return [Check("OpenGL", "missing", "neither libEGL nor libOSMesa loads", fix, core=False)]


def _vulkan() -> list[Check]:
    packages = "libvulkan1 mesa-vulkan-drivers"
    fix = f"for simulators that draw with it (ManiSkill); tabletop does not. On Debian: apt install {packages}"
    if not _loadable("libvulkan.so.1"):
        return [Check("Vulkan", "missing", "libvulkan does not load", fix, core=False)]
    folders = [
        Path(base) / "vulkan" / "icd.d"
        for base in ("/etc", "/usr/share", "/usr/local/share", Path.home() / ".local/share")
    ]
    drivers = [path.name for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))]
    if not drivers:
        return [
            Check("Vulkan", "missing", "libvulkan loads, but no driver (icd.d/*.json) is installed", fix, core=False)
        ]
    return [Check("Vulkan", "works", f"drivers {', '.join(drivers)}", core=False)]


def _simulators() -> list[Check]:
    return examine_simulators([])


def _simulator(name: str) -> Check:
    """Look at a simulator in a process of its own: it may hang or crash, and the doctor shall live."""
    title, core = f"simulator {name}", name == SimulatorConfig().name
    if missing := _needs(name):
        return Check(title, "missing", *missing, core=core)
    with subprocess.Popen(
        [sys.executable, "-m", "treadle.simulators.probe", name],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, said = process.communicate(timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            # Its workers end with it.
            process.kill()
            return Check(title, "missing", f"no answer in {PROBE_SECONDS:.0f} s", _again(name), core)
    if process.returncode == 0:
        return Check(title, "works", json.loads(out.splitlines()[-1])["detail"], core=core)
    last = (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return Check(title, "missing", last, _again(name), core)


def _needs(name: str) -> tuple[str, str] | None:
    """What a simulator's environment lacks, and the fix."""
    try:
        environment = simulator_environment(name)
        if environment is None:
            return None
        if packages := missing_packages(environment):
            return f"system packages are missing: {', '.join(packages)}", packages_fix(packages)
        if environment.stamp() is None and environment.unmet_here():
            return "not installed", f"treadle simulators install {name}"
        if assets := environment.missing_assets():
            return assets_text(assets), "put them there; the simulator's page in the docs says where they come from"
    except TreadleError as error:
        return str(error), "mend what it names"
    return None


def _again(name: str) -> str:
    return f"see all of it with: {Path(sys.executable).name} -m treadle.simulators.probe {name}"


def _disk() -> list[Check]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free >= NEEDED_DISK_GB:
        return [Check("disk", "works", f"{free:.0f} GB free here")]
    return [
        Check("disk", "missing", f"{free:.1f} GB free here", f"free some: a run needs up to {NEEDED_DISK_GB:.0f} GB")
    ]


def _memory() -> list[Check]:
    psutil, problem = _import("psutil")
    if psutil is None:
        return [Check("memory", "missing", problem, "make setup")]
    total, free = (psutil.virtual_memory().total / 2**30, psutil.virtual_memory().available / 2**30)
    detail = f"{free:.1f} of {total:.1f} GiB available"
    if free >= NEEDED_MEMORY_GB * 0.75:
        return [Check("memory", "works", detail)]
    return [
        Check("memory", "missing", detail, f"the quickstart needs up to {NEEDED_MEMORY_GB:.0f} GiB: end other programs")
    ]


def _import(name: str) -> tuple[Any, str]:
    try:
        return importlib.import_module(name), ""
    except (ImportError, OSError) as error:
        # OSError: a shared library of the package does not load.
        return None, f"{type(error).__name__}: {error}"


def _loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _yes(value: bool) -> str:
    return "yes" if value else "no"
