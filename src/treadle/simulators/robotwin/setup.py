"""What RoboTwin's environment needs beside packages. Standard library alone."""

import subprocess
from pathlib import Path

from treadle.environments.mesa import prepare_vulkan
from treadle.errors import SimulatorError

_TORCH = "torch==2.13.0"


def prepare(environment: Path) -> dict[str, str]:
    """Finish an environment in this folder; returns the variables that its workers need.

    An empty module stands for open3d, which RoboTwin imports and uses for point clouds alone. Where torch was installed
    without the libraries that its build asks for, they are installed too. A Vulkan driver is found or fetched.

    Raises:
        SimulatorError: something cannot be prepared; names the fix.
    """
    python = environment / "bin" / "python"
    packages = Path(_run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]).strip())
    if not (packages / "open3d").exists():
        (packages / "open3d").mkdir()
        (packages / "open3d" / "__init__.py").write_text('"""Empty: point clouds are off."""\n')
    if subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode:
        _run([python, "-m", "pip", "install", "--quiet", _TORCH])
    return prepare_vulkan(environment)


def _run(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-400:]
        raise SimulatorError(
            f"robotwin: `{' '.join(map(str, command))}` failed: {said}; mend it, then install the simulator again"
        )
    return done.stdout
