"""What works on this machine, what is missing, and how to mend it."""

import ctypes
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from treadle.commands.installing import assets_text
from treadle.config.schema import SimulatorConfig
from treadle.environments.install import missing_packages, packages_fix
from treadle.errors import TreadleError
from treadle.simulators.build import find_simulator, installed_simulators, is_family, simulator_environment

State = Literal["works", "missing", "absent"]

PROBE_SECONDS = 300.0
DRIVER = Path("/proc/driver/nvidia/version")
NEEDED_DISK_GB = 2.0
NEEDED_MEMORY_GB = 4.0
EXTRAS = {
    "serve": "answering over a websocket",
    "wandb": "curves in Weights & Biases",
    "rerun": "episodes in Rerun",
}
"""Extras of the package, and what for."""
_EXTRA = re.compile(r"([\w.-]+).*; extra == ['\"]([\w-]+)['\"]")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    """`missing` should be there or does not work; `absent` is an option that nobody has taken here."""
    detail: str
    fix: str = ""
    core: bool = True
    """Whether Treadle cannot work without it; the rest is for some simulators or devices only."""


def examine() -> list[Check]:
    """All checks, in the order in which they are shown. Imports torch and MuJoCo; takes some seconds."""
    libraries = [_python(), *_torch(), *examine_devices(), _transformers(), _mujoco(), *_extras(), _opengl(), _vulkan()]
    return [*libraries, *examine_simulators([]), _disk(), _memory()]


def examine_devices() -> list[Check]:
    """Checks of graphics cards, and of what runs of several processes need. None decides whether the core works.
    Without torch there is only Ray's.
    """
    torch, _ = _import("torch")
    return [_ray()] if torch is None else [_cuda(torch), _nccl(torch), _fsdp2(torch), _ray()]


def examine_simulators(names: Sequence[str]) -> list[Check]:
    """A check for each simulator, or for all that are installed where none is named. Raises ConfigError for a name that
    is no simulator's.
    """
    for name in names:
        find_simulator(name)
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
        mark = Text(*_MARKS[check.state, check.core or check.state != "missing"])
        found = Text(check.detail)
        if check.fix:
            found.append(f"\n{check.fix}", {"missing": "bold", "works": "", "absent": "dim"}[check.state])
        table.add_row(Text(check.name, "bold"), mark, found)
    return table


def verdict(checks: Sequence[Check]) -> Text:
    """What all checks come to, in a sentence."""
    broken = [check.name for check in checks if check.state == "missing"]
    if not broken:
        return Text("Everything that is here works.", "green")
    needed = [check.name for check in checks if check.state == "missing" and check.core]
    if needed:
        return Text(f"Treadle cannot work here: {', '.join(needed)}.", "bold red")
    return Text(f"Treadle works here; to mend, where you need it: {', '.join(broken)}.", "yellow")


_MARKS = {
    ("works", True): ("works", "green"),
    ("absent", True): ("not here", "dim"),
    ("missing", True): ("missing", "bold red"),
    ("missing", False): ("to mend", "yellow"),
}
"""By state, and whether everything needs it."""


def _check(name: str, works: bool, detail: str, fix: str, core: bool = True) -> Check:
    """What was looked at; the fix is shown where it does not work. What not everything needs is then absent."""
    if works:
        return Check(name, "works", detail, core=core)
    return Check(name, "missing" if core else "absent", detail, fix, core)


def _python() -> Check:
    fix = "use Python 3.11, 3.12 or 3.13: make setup PYTHON=..."
    return _check("Python", (3, 11) <= sys.version_info < (3, 14), sys.version.split()[0], fix)


def _torch() -> list[Check]:
    torch, problem = _import("torch")
    if torch is None:
        return [Check("torch", "missing", problem, "make setup")]
    checks = [Check("torch", "works", f"{torch.__version__}, {torch.get_num_threads()} threads"), _cpu(torch)]
    if torch.backends.mps.is_available():
        checks.append(Check("MPS", "works", "Apple GPU", core=False))
    return checks


def _cuda(torch: Any) -> Check:
    driver = _driver()
    built = torch.version.cuda is not None
    versions = f"driver {driver or 'unknown'}, torch for CUDA {torch.version.cuda or 'none'}"
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        kinds = Counter((card.name, round(card.total_memory / 2**30)) for card in cards)
        found = ", ".join(f"{count} x {name} ({memory} GiB)" for (name, memory), count in kinds.items())
        bf16 = "yes" if torch.cuda.is_bf16_supported() else "no"
        return Check("CUDA", "works", f"{found}; {versions}; bf16 {bf16}", core=False)
    if driver is not None:
        fix = f"install a torch for CUDA that driver {driver} runs"
        return Check("CUDA", "missing", f"torch does not see the graphics card; {versions}", fix, core=False)
    problem = f"no driver was found; torch for CUDA {torch.version.cuda}" if built else "torch was built without it"
    fix = "needed for large policies only; the quickstart runs on a CPU"
    return Check("CUDA", "absent", problem, fix, core=False)


def _driver() -> str | None:
    """The version of NVIDIA's driver, None without one."""
    if not DRIVER.exists():
        return None
    found = re.search(r"Module.*?\s(\d+(?:\.\d+)+)\s", DRIVER.read_text(encoding="utf-8"))
    return found[1] if found else None


def _nccl(torch: Any) -> Check:
    works = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    detail = ".".join(map(str, torch.cuda.nccl.version())) if works else "torch was built without it"
    fix = "for training on several graphics cards only; install a torch for CUDA. On CPUs gloo takes its place"
    return _check("NCCL", works, detail, fix, core=False)


def _fsdp2(torch: Any) -> Check:
    from treadle.training.shards import can_shard

    works = can_shard()
    detail = f"torch {torch.__version__}" if works else f"torch {torch.__version__} is too old"
    fix = "for placement.sharding only: install torch 2.13 or later"
    return _check("FSDP2", works, detail, fix, core=False)


def _ray() -> Check:
    return _packages("Ray", ["ray"], "ray", "runs of several processes")


def _extras() -> list[Check]:
    """What is installed beside the core for single jobs; Ray is among the devices."""
    wanted: dict[str, list[str]] = {}
    for line in requires("treadle") or ():
        if found := _EXTRA.fullmatch(line):
            wanted.setdefault(found[2], []).append(found[1])
    return [_packages(name, wanted[name], name, what) for name, what in EXTRAS.items() if name in wanted]


def _packages(title: str, packages: Sequence[str], extra: str, what: str) -> Check:
    # Versions alone: importing them takes seconds.
    try:
        found = ", ".join(f"{name} {version(name)}" if len(packages) > 1 else version(name) for name in packages)
        return Check(title, "works", found, core=False)
    except PackageNotFoundError as error:
        fix = f"for {what} only: pip install 'treadle[{extra}]'"
        return Check(title, "absent", f"{error.name} is not installed", fix, core=False)


def _cpu(torch: Any) -> Check:
    flags: set[str] = set()
    if sys.platform == "linux":
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
        flags = set(lines[0].split()) if lines else set()
    native = sorted(flags & {"avx512_bf16", "amx_bf16", "bf16", "avx_ne_convert"})
    bf16 = f"bf16 in hardware ({', '.join(native)})" if native else "bf16 emulated, float32 is faster"
    detail = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {bf16}"
    return Check("CPU", "works", detail, core=False)


def _transformers() -> Check:
    # The version alone: importing it takes seconds, and what breaks it breaks torch first.
    try:
        return Check("transformers", "works", version("transformers"))
    except PackageNotFoundError:
        return Check("transformers", "missing", "not installed", "make setup")


def _mujoco() -> Check:
    mujoco, problem = _import("mujoco")
    if mujoco is None:
        return Check("MuJoCo", "missing", problem, "make setup")
    ball = "<mujoco><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>"
    model = mujoco.MjModel.from_xml_string(ball)
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data)
    falls = data.qvel[2] < 0
    detail = f"{mujoco.__version__}, {'a ball falls' if falls else 'but a ball does not fall'}"
    return _check("MuJoCo", falls, detail, "reinstall: pip install --force-reinstall mujoco")


def _opengl() -> Check:
    found = [name for name in ("libEGL.so.1", "libOSMesa.so.8", "libOSMesa.so.6") if _loadable(name)]
    detail = f"{', '.join(found)} loads" if found else "neither libEGL nor libOSMesa loads"
    fix = "for simulators that draw with it; not every one does. On Debian: apt install libegl1 libosmesa6"
    return _check("OpenGL", bool(found), detail, fix, core=False)


def _vulkan() -> Check:
    """A driver of the system, or those that environments of simulators have of their own."""
    folders = [Path(base) for base in ("/etc", "/usr/share", "/usr/local/share", Path.home() / ".local/share")]
    drivers = [path.name for folder in folders for path in sorted(folder.glob("vulkan/icd.d/*.json"))]
    loads = _loadable("libvulkan.so.1")
    found = [f"drivers {', '.join(drivers)}"] if drivers and loads else []
    found += [f"{name} has its own driver, {driver}" for name, driver in _own_drivers().items()]
    without = "libvulkan loads, but no driver (icd.d/*.json) is installed" if loads else "libvulkan does not load"
    fix = "for simulators that draw with it; `treadle simulators install` brings a driver where one is needed"
    return _check("Vulkan", bool(found), "; ".join(found) or without, fix, core=False)


def _own_drivers() -> dict[str, str]:
    """Vulkan's drivers that installed environments give their workers, by simulator."""
    found: dict[str, str] = {}
    for name in installed_simulators():
        try:
            environment = simulator_environment(name)
            variables = ((environment and environment.stamp()) or {}).get("variables", {})
        except TreadleError:
            continue
        if path := variables.get("VK_ICD_FILENAMES"):
            found[name] = Path(path).name
    return found


def _simulator(name: str) -> Check:
    """Look at a simulator in a process of its own: it may hang or crash, and the doctor shall live."""
    title, core = f"simulator {name}", name == SimulatorConfig().name
    if needed := _needs(name):
        return Check(title, *needed, core=core)
    if is_family(name):
        said = f"plays environments by their ID; one of them: treadle simulators doctor {name}:ID"
        return Check(title, "works", said, core=core)
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "treadle.commands.probe", name],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, said = process.communicate(timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            # Its workers end with it. `-P`: modules of the current folder are not imported in place of installed ones.
            os.killpg(process.pid, signal.SIGKILL)
            late = f"no answer in {PROBE_SECONDS:.0f} s; a machine that is busy with other work may need longer"
            return Check(title, "missing", late, _again(name), core)
    if process.returncode == 0:
        return Check(title, "works", json.loads(out.splitlines()[-1])["detail"], core=core)
    last = (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return Check(title, "missing", last, _again(name), core)


def _needs(name: str) -> tuple[State, str, str] | None:
    """What a simulator's environment lacks, and the fix. One that nobody has installed is absent."""
    try:
        environment = simulator_environment(name)
        if environment is None:
            return None
        if environment.stamp() is None and environment.unmet_here():
            return "absent", "not installed", f"treadle simulators install {name}"
        if packages := missing_packages(environment):
            return "missing", f"system packages are missing: {', '.join(packages)}", packages_fix(packages)
        if assets := environment.missing_assets():
            fix = "put them there; the simulator's page in the docs says where they come from"
            return "missing", assets_text(assets), fix
    except TreadleError as error:
        return "missing", str(error), "mend what it names"
    return None


def _again(name: str) -> str:
    python = Path(sys.executable)
    # The command as it can be typed: its name alone means another Python where the environment is not activated.
    found = shutil.which(python.name)
    typed = python.name if found is not None and Path(found) == python else shlex.quote(str(python))
    return f"see all of it with: {typed} -m treadle.commands.probe {shlex.quote(name)}"


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    fix = f"free some: a run needs up to {NEEDED_DISK_GB:.0f} GB"
    return _check("disk", free >= NEEDED_DISK_GB, f"{free:.1f} GB free here", fix)


def _memory() -> Check:
    psutil, problem = _import("psutil")
    if psutil is None:
        return Check("memory", "missing", problem, "make setup")
    total, free = (psutil.virtual_memory().total / 2**30, psutil.virtual_memory().available / 2**30)
    fix = f"the quickstart needs up to {NEEDED_MEMORY_GB:.0f} GiB: end other programs"
    return _check("memory", free >= NEEDED_MEMORY_GB * 0.75, f"{free:.1f} of {total:.1f} GiB available", fix)


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
