"""A simulator in an environment of its own: reading it, making it, and playing there."""

import json
import os
import sys
import zipfile
from pathlib import Path
from threading import Barrier
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from fake_lanes import Plan, collect
from fake_simulator import scenario
from treadle import doctor
from treadle.cli import app
from treadle.config.algorithm import DataNeeds
from treadle.config.schema import CollectionConfig, SimulatorConfig
from treadle.cores import usable_cores
from treadle.environments import install as installing
from treadle.environments.environment import Environment, environments_folder, read_environment
from treadle.environments.install import install
from treadle.environments.interpreter import Interpreter
from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.build import simulator_environment, simulator_factory
from treadle.workers import queries
from treadle.workers.crew import Crew
from treadle.workers.plan import plan_crew

NAME = "tiny_simulator:TinySimulator"
FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty cache folder, the tiny simulator on the path, and a package index that has its one package."""
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(FIXTURES)
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "tiny_physics-1.0-py3-none-any.whl", "w") as wheel:
        info = "tiny_physics-1.0.dist-info"
        wheel.writestr("tiny_physics.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-physics\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"tiny_physics.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": index.as_uri(), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    # The doctor looks in a process of its own.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FIXTURES), str(FIXTURES.parent), *filter(None, sys.path)]))
    return tmp_path / "home"


def tiny() -> Environment:
    environment = simulator_environment(NAME)
    assert environment is not None
    return environment


def treadle(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, list(arguments))


def test_a_simulator_installed_in_its_environment_is_played_from_here(home):
    """The whole way: refused, installed, kept, found whole by the doctor, evaluated, and collected from in lanes."""
    with pytest.raises(SimulatorError, match=rf"lacks tiny-physics==1.0; .*treadle simulators install {NAME}"):
        plan_crew(SimulatorConfig(name=NAME), CollectionConfig(), accelerated=False)
    done = treadle("simulators", "install", NAME)
    assert done.exit_code == 0, done.output
    assert f"installed in {home}/environments/tiny_simulator-TinySimulator-" in done.stdout
    assert "is installed in" in treadle("simulators", "install", NAME).stdout

    config = SimulatorConfig(name=NAME, slots=4, horizon=10)
    plan = plan_crew(config, CollectionConfig(workers=2), accelerated=False)
    assert (plan.kind, plan.workers) == ("processes", 2)
    with Crew(plan) as crew:
        ((python, package, variable, prepared, *imported),) = crew.call(queries.INSTRUCTIONS, [scenario(0)])
        assert python == str(tiny().executable)
        assert Path(package).is_relative_to(tiny().path)
        assert (variable, prepared, imported) == ("software", "prepared", [])
        environments = [psutil.Process(pid).environ() for pid in crew.pids]
    assert [environment["TINY"] for environment in environments] == ["prepared"] * 2

    (rollout,) = collect(Plan(plan, DataNeeds(keep_final="truncated"), 10), (6,))
    assert len(rollout.episodes) == 4
    with pytest.raises(ConfigError, match=r"collection.kind 'threads' with simulator.name"):
        plan_crew(config, CollectionConfig(kind="threads"), accelerated=False)

    (check,) = doctor.examine_simulators([NAME])
    assert (check.state, check.detail) == ("works", "4 suites, frames 4 x 4 from front")


@pytest.fixture
def made(home, monkeypatch) -> list[list[str]]:
    """The commands that an installation would run; the environment appears without them."""
    commands: list[list[str]] = []

    def run(command, log, progress, what, variables=None, hint="") -> None:
        commands.append([*command])
        if "venv" in command:
            tiny().executable.parent.mkdir(parents=True)
            tiny().executable.touch()
            (tiny().path / "lib/python3.11/site-packages").mkdir(parents=True)

    monkeypatch.setattr(installing, "_run", run)
    return commands


def test_an_environment_is_made_once_and_a_half_made_one_again(made):
    environment = tiny()
    assert install(environment, print)
    assert [command[-1] for command in made] == [str(environment.path), "tiny-physics==1.0"]
    assert "--no-deps" in made[1]
    assert not install(environment, print)
    assert install(environment, print, force=True)
    (environment.path / "treadle.json").write_text("{")
    made.clear()
    assert install(environment, print)
    assert len(made) == 2, "half of a stamp is none"


def test_a_changed_preparation_is_done_again_without_pip(made):
    environment = tiny()
    install(environment, print)
    made.clear()
    stamp = environment.path / "treadle.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"setup": "of another day"}))
    said: list[str] = []
    assert install(environment, said.append)
    assert (made, said) == ([], ["preparing"])


@pytest.mark.skipif(len(usable_cores()) < 2, reason="one at a time on one core")
def test_environments_are_installed_side_by_side_and_a_failure_leaves_the_others(home, monkeypatch):
    both, done = Barrier(2, timeout=30), []

    def fake(environment: Environment, progress, **settings: bool) -> bool:
        both.wait()
        progress("half way")
        if environment.name == "libero":
            raise SimulatorError("no room")
        done.append(environment.name)
        return True

    monkeypatch.setattr("treadle.commands.installing.install", fake)
    result = treadle("simulators", "install", "libero", "maniskill")
    assert done == ["maniskill"]
    assert f"maniskill: installed in {home}/environments/maniskill-" in result.stdout
    assert "maniskill: half way" in result.stdout
    assert result.exit_code == 2
    assert "no room" in result.stderr


def test_a_failing_pip_shows_its_tail_and_leaves_nothing_installed(home, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", home.as_uri())
    result = treadle("simulators", "install", NAME)
    assert result.exit_code == 2
    assert "pip could not install the pins" in result.stderr
    assert "No matching distribution found for tiny-physics==1.0" in result.stderr
    (log,) = (home / "environments").glob("*.log")
    assert f"all of it is in {log})" in result.stderr
    assert "tiny-physics" in log.read_text()
    assert tiny().stamp() is None


def test_missing_system_packages_are_named_with_the_command(made, monkeypatch):
    monkeypatch.setattr(installing, "missing_packages", lambda environment: ["libthing1"])
    monkeypatch.setattr(installing.os, "geteuid", lambda: 1000)
    with pytest.raises(
        SimulatorError, match=r"missing: libthing1; install them with: sudo apt-get install -y libthing1"
    ):
        install(tiny(), print)
    monkeypatch.setattr(installing.os, "geteuid", lambda: 0)
    install(tiny(), print, system=True)
    assert made[1][-1] == "libthing1"
    monkeypatch.setattr(doctor, "missing_packages", lambda environment: ["libthing1"])
    (check,) = doctor.examine_simulators([NAME])
    assert (check.state, check.fix) == ("missing", "apt-get install -y libthing1")


def test_missing_assets_are_named(made, monkeypatch):
    install(tiny(), print)
    monkeypatch.setenv("TINY_MISSING", "/a/box.glb:/a/arm.urdf")
    (check,) = doctor.examine_simulators([NAME])
    assert check.detail == "assets are missing: /a/box.glb, /a/arm.urdf"
    assert "assets are missing" in treadle("simulators", "install", NAME).stdout


def test_another_pin_is_another_environment(tmp_path):
    text = (FIXTURES / "tiny_simulator" / "environment.toml").read_text()
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(text)
    other.write_text(text.replace("==1.0", "==1.1"))
    paths = [read_environment("tiny", "tiny", file).path for file in (one, other)]
    assert paths[0] != paths[1]
    assert paths[0].parent == environments_folder()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("requirments = ['a==1']\npython=['3.11']", "unknown key 'requirments', did you mean 'requirements'?"),
        ("python=['3.11']", "requirements is missing"),
        ("requirements = ['a==1']", "python is missing"),
        ("requirements = 'a==1'\npython=['3.11']", 'requirements: found "a==1", allowed is a list of strings'),
        ("requirements = ['a==1']\npython=['3.11']\nvariables={A=1}", "variables.A: found 1, allowed is a string"),
        ("requirements = [", "mend the file"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, said):
    file = tmp_path / "environment.toml"
    file.write_text(text)
    with pytest.raises(SimulatorError) as caught:
        read_environment("tiny", "tiny", file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_python_of_the_users_own():
    config = SimulatorConfig(name="not.here:AtAll", python=sys.executable)
    assert simulator_factory(config).interpreter == Interpreter(sys.executable)
    with pytest.raises(ConfigError, match=r"simulator.python: found 'no-such-python', which is no program here"):
        simulator_factory(SimulatorConfig(python="no-such-python"))


def test_a_python_without_numpy_says_so(tmp_path):
    import venv

    venv.create(tmp_path / "bare", with_pip=False)
    config = SimulatorConfig(slots=1, python=str(tmp_path / "bare/bin/python"))
    with pytest.raises(SimulatorError, match=r"bare/bin/python: No module named 'numpy'; a simulator's Python needs"):
        Crew(plan_crew(config, CollectionConfig(), accelerated=False))


def test_simulators_are_listed(home):
    result = treadle("simulators", "list")
    assert result.exit_code == 0
    assert "tabletop" in result.stdout
    assert "needs no environment of its own" in result.stdout
    nothing = treadle("simulators", "install")
    assert nothing.exit_code == 2
    assert "name a simulator, or give --all" in nothing.stderr
