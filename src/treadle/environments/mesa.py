"""A Vulkan driver in software for simulators that draw with SAPIEN, where there is no graphics card. Standard library
alone.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from treadle.errors import SimulatorError

PACKAGES = ("mesa-vulkan-drivers", "libvulkan1")
OLDEST_MESA = 23
"""The first release of Mesa whose software renderer indexes descriptors, which SAPIEN needs."""
_ICD = Path("/usr/share/vulkan/icd.d")


def prepare_vulkan(environment: Path) -> dict[str, str]:
    """Set up a Vulkan driver for the environment in this folder; returns the variables that its workers need.

    A graphics card's own driver is left to Vulkan's loader. Without one, the system's Mesa does where it is recent
    enough; else a recent one is fetched with apt from the distribution's backports and unpacked below `environment`,
    which changes nothing in the system and needs no rights. Done once: what is there is used again.

    Raises SimulatorError where there is no driver and none can be fetched, and names the fix.
    """
    if _has_graphics_card():
        return {}
    root = environment / "mesa"
    if not (found := _software_driver(root / "usr" / "share" / "vulkan" / "icd.d")):
        if (system := _software_driver(_ICD)) and _mesa_release() >= OLDEST_MESA:
            return {"VK_ICD_FILENAMES": str(system)}
        _unpack(root, environment / "apt")
        if not (found := _software_driver(root / "usr" / "share" / "vulkan" / "icd.d")):
            raise SimulatorError(f"no Vulkan software driver came with {PACKAGES[0]} in {root}; {_FIX}")
    libraries = found.parents[3] / "lib"
    folders = sorted({str(path.parent) for path in libraries.rglob("lib*.so*")})
    return {"VK_ICD_FILENAMES": str(found), "LD_LIBRARY_PATH": ":".join(folders)}


_FIX = (
    f"install a Mesa of {OLDEST_MESA} or newer (Debian 13, Ubuntu 24.04: apt-get install {' '.join(PACKAGES)}; "
    "Debian 12: from bookworm-backports), then install the simulator again"
)


def _has_graphics_card() -> bool:
    folders = (_ICD, Path("/etc/vulkan/icd.d"))
    return Path("/dev/nvidiactl").exists() and any(any(folder.glob("nvidia*.json")) for folder in folders)


def _software_driver(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("lvp_icd*.json"))), None)


def _mesa_release() -> int:
    """The system's release of Mesa by its package's version, 0 where there is none."""
    if not shutil.which("dpkg-query"):
        return 0
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f=${Version}", PACKAGES[0]], check=False, capture_output=True, text=True
    )
    match = re.match(r"(?:\d+:)?(\d+)\.", asked.stdout)
    return int(match[1]) if match else 0


def _unpack(root: Path, work: Path) -> None:
    """Fetch the driver and whatever it needs that the system lacks, with lists of its own, and unpack it to `root`."""
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]:
        raise SimulatorError(f"no Vulkan driver here, and no {missing[0]} to fetch one with; {_FIX}")
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    release, lines = _sources()
    (work / "sources.list").write_text("\n".join(lines) + "\n")
    apt = [
        "apt-get",
        *("-o", f"Dir::State::lists={work / 'lists'}"),
        *("-o", f"Dir::Etc::sourcelist={work / 'sources.list'}"),
        *("-o", "Dir::Etc::sourceparts=-"),
        *("-o", f"Dir::Cache={work}"),
        *("-o", f"Dir::Cache::archives={work / 'archives'}"),
        *("-o", "Debug::NoLocking=1"),
    ]
    _run([*apt, "update"])
    # A simulated installation names what is missing here and what has to be newer; nothing is installed.
    _run([*apt, "-y", "--no-install-recommends", "--download-only", "-t", f"{release}-backports", "install", *PACKAGES])
    unpacking = root.with_suffix(".new")
    shutil.rmtree(unpacking, ignore_errors=True)
    for archive in sorted((work / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(unpacking)])
    shutil.rmtree(work)
    shutil.rmtree(root, ignore_errors=True)
    unpacking.rename(root)


def _sources() -> tuple[str, list[str]]:
    """The distribution's codename, and apt's lines for it and its backports at the mirror that this system uses."""
    system = dict(re.findall(r"^(ID|VERSION_CODENAME)=\"?([\w-]+)", Path("/etc/os-release").read_text(), re.MULTILINE))
    release = system.get("VERSION_CODENAME", "")
    rows = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)"]).splitlines()
    mirror = next((row.split()[0] for row in rows if row.split()[1:] == [release, "main"]), None)
    if mirror is None:
        raise SimulatorError(f"apt here has no sources of the distribution's main packages; {_FIX}")
    keyring = Path(f"/usr/share/keyrings/{system.get('ID')}-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.exists() else ""
    return release, [f"deb {signed}{mirror} {suite} main" for suite in (release, f"{release}-backports")]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = (done.stderr.strip() or done.stdout.strip())[-400:]
        raise SimulatorError(f"`{' '.join(command)}` failed: {tail}; {_FIX}")
    return done.stdout
