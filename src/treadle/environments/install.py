"""Makes the environment of a simulator: a virtual environment with its pins, and what more it prepares."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from threading import Lock

from treadle.environments.environment import STAMP, Environment
from treadle.errors import SimulatorError
from treadle.files import write_atomically

_APT = Lock()
"""apt-get refuses to run twice at a time."""

Progress = Callable[[str], None]
"""Told what goes on, in a line."""

_TAIL = 12
"""Lines of pip's output that an error shows."""


def install(environment: Environment, progress: Progress, *, force: bool = False, system: bool = False) -> bool:
    """Make the environment, unless it is there with these pins; returns whether anything was done.

    One that was only half made is made again, and with `force` any. Interrupted or failed, it leaves nothing that
    counts as installed. `system` installs missing Debian packages with apt-get, which takes root.

    Raises SimulatorError: no fitting Python, missing system packages, pip failed, or the simulator's own preparation.
    """
    with _alone(environment):
        stamp = None if force else environment.stamp()
        if stamp is not None and stamp["setup"] == environment.setup_digest() and not missing_packages(environment):
            return False
        _have_packages(environment, progress, system)
        if stamp is None:
            _make(environment, progress)
        (environment.path / STAMP).unlink(missing_ok=True)
        prepare = getattr(environment.setup(), "prepare", None)
        if prepare is not None:
            progress("preparing")
        variables = {} if prepare is None else prepare(environment.path)
        content = {"variables": variables, "setup": environment.setup_digest()}
        write_atomically(environment.path / STAMP, json.dumps(content, indent=2) + "\n")
        return True


def missing_packages(environment: Environment) -> list[str]:
    """The Debian packages that are not installed; none where the system is no Debian and cannot tell."""
    if shutil.which("dpkg-query") is None:
        return []
    missing: list[str] = []
    for name in environment.apt:
        asked = ["dpkg-query", "-W", "-f=${db:Status-Status}", name]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout != "installed":
            missing.append(name)
    return missing


def packages_fix(packages: Sequence[str]) -> str:
    """The command that installs Debian packages."""
    return f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install -y {' '.join(packages)}"


def _have_packages(environment: Environment, progress: Progress, system: bool) -> None:
    missing = missing_packages(environment)
    if not missing:
        return
    if not system or os.geteuid() != 0:
        how = "" if system else " (or give --system as root)"
        raise SimulatorError(
            f"simulator {environment.name!r} needs system packages that are missing: {', '.join(missing)}; install "
            f"them with: {packages_fix(missing)}{how}"
        )
    what, apart = f"apt-get could not install {', '.join(missing)}", {"DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-y", "--no-install-recommends"]
    with _APT:
        for command in ([*apt[:2], "update"], [*apt, "install", *missing]):
            _run(command, environment, progress, what, apart)


def _make(environment: Environment, progress: Progress) -> None:
    python = _find_python(environment)
    shutil.rmtree(environment.path, ignore_errors=True)
    progress(f"making a virtual environment with {python}")
    what = f"cannot make the environment of {environment.name!r}"
    hint = "; on Debian the module venv is in the package python3-venv"
    _run([python, "-P", "-m", "venv", str(environment.path)], environment, progress, what, hint=hint)
    pip = [str(environment.executable), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    # A module is compiled when it is first imported; of what a simulator brings most never is.
    pip += ["--no-compile", "--progress-bar", "off", *(["--no-deps"] if environment.no_deps else [])]
    # The first on its own, so that whichever build of it the package index offers for this machine is kept.
    first, rest = environment.requirements[:1], environment.requirements[1:]
    for requirements in filter(None, (first, rest and environment.requirements)):
        _run([*pip, *requirements], environment, progress, f"pip could not install the pins of {environment.name!r}")


def _find_python(environment: Environment) -> str:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here in environment.python:
        return sys.executable
    for version in environment.python:
        found = shutil.which(f"python{version}")
        # A shim of a version manager may be there and not run.
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    wanted = ", ".join(f"python{version}" for version in environment.python)
    raise SimulatorError(
        f"simulator {environment.name!r} needs Python {' or '.join(environment.python)}; this is {here}, and {wanted} "
        "is not on the PATH; install it, or add its folder to PATH"
    )


def _run(
    command: Sequence[str],
    environment: Environment,
    progress: Progress,
    what: str,
    variables: dict[str, str] | None = None,
    hint: str = "",
) -> None:
    """Run a command; its output goes to a log beside the environment, and line by line to `progress`."""
    lines: list[str] = []
    log = environment.path.with_name(f"{environment.path.name}.log")
    # PYTHONPATH would show pip packages that are not the environment's own.
    surrounding = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**surrounding, **(variables or {})},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                lines.append(line.rstrip())
                progress(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        tail = "\n".join(lines[-_TAIL:])
        raise SimulatorError(f"{what} (exit code {process.returncode}; all of it is in {log}){hint}\n{tail}")


@contextmanager
def _alone(environment: Environment) -> Generator[None]:
    """Only one process at a time makes an environment."""
    lock = environment.path.with_name(f"{environment.path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SimulatorError(
                f"simulator {environment.name!r} is being installed by another process; wait for it to end"
            ) from None
        yield
