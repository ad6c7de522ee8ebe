"""What a run ran on: versions, processor, memory.

Imports the standard library alone: checks that run in the Python of a simulator use it.
"""

import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from treadle.cores import usable_cores
from treadle.files import to_json, write_atomically

MACHINE_FILE = "machine.json"
_PACKAGES = ("treadle", "torch", "transformers", "mujoco", "numpy")


def versions() -> dict[str, str]:
    """Python and the packages that decide a run's numbers; those not installed are left out. Imports none of them."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def source_commit() -> str | None:
    """The commit of the clone that Treadle runs from, with `+` behind it where files differ from it; None for an
    installed package.
    """
    package = Path(__file__).parents[1]
    if not (package.parents[1] / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", package, *words], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_model() -> str:
    """The processor's name as its maker gives it, or the architecture where the system does not say."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_rss_mb(workers: Iterable[int] = ()) -> float:
    """Highest resident memory that this process and its `workers`, named by their numbers, have held, each at its own
    time, in MiB; on other systems than Linux that of this process.

    What the system says of ended children would count this process twice: a child that runs a command begins as a copy.
    """
    if sys.platform != "linux":
        # macOS counts bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return sum(_peak_rss_mb(number) for number in (os.getpid(), *workers))


def _peak_rss_mb(number: int) -> float:
    """Of one process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{number}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """The machine in words and numbers; `device` is what the policy runs on."""
    return {
        "cpu": cpu_model(),
        "cores": len(usable_cores()),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "device": device,
        "versions": versions(),
    }


def write_machine(run_dir: Path, device: str = "cpu") -> None:
    """Keep the machine with the run, in `machine.json`, and the command that runs now: its report may be made again on
    another.

    Raises OutputError where the folder cannot be written.
    """
    program = "treadle" if Path(sys.argv[0]).stem in ("treadle", "cli") else Path(sys.argv[0]).name
    told = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "command": shlex.join([program, *sys.argv[1:]])}
    write_atomically(run_dir / MACHINE_FILE, to_json(told | describe_machine(device)) + "\n")
