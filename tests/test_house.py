"""The map of the code holds: arrows point down, there are no circles, and the core names no simulator and no policy."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import treadle

SOURCE = Path(treadle.__file__).parent

LAYERS = [
    {"api", "cli", "commands", "doctor"},
    {"runtime", "supervised", "serving"},
    {"evaluation"},
    {"training", "rollout"},
    {"workers", "policies", "reporting"},
    {"simulators", "gymnasium"},
    {"environments"},
    {"config", "algorithms"},
    {"data"},
    {"devices", "plugins", "files", "reading", "tables"},
    {"cores", "memory", "errors"},
]
"""From the top down; a module imports its own folder and what lies below."""

BESIDE = {("workers", "policies"), ("policies", "workers"), ("training", "rollout"), ("rollout", "training")}
"""Folders of one layer that must not know each other."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below `treadle`."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, *, types: bool = True) -> Iterator[str]:
    """What a module imports of the package, wherever the import stands, as dotted names below `treadle`; without
    `types` not what only a type checker imports.
    """
    tree = ast.parse(MODULES[name].read_text())
    if not types:
        guards = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        for guard in guards:
            guard.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in wanted:
            if full.partition(".")[0] == "treadle" and "." in full:
                dotted = full.partition(".")[2]
                while dotted and dotted not in MODULES:
                    dotted = dotted.rpartition(".")[0]
                if dotted:
                    yield dotted


def layer(name: str) -> int:
    folder = name.partition(".")[0]
    return next(i for i, folders in enumerate(LAYERS) if folder in folders)


def test_every_folder_has_a_place():
    folders = {name.partition(".")[0] for name in MODULES if name}
    assert folders == set().union(*LAYERS)


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_arrows_point_down(name: str):
    folder = name.partition(".")[0]
    for other in imports(name):
        target = other.partition(".")[0]
        assert layer(other) >= layer(name), f"{name} imports {other}, which lies above it"
        assert (folder, target) not in BESIDE, f"{name} imports {other}: {folder} and {target} do not know each other"


def test_there_are_no_circles():
    graph = {name: {other for other in imports(name, types=False) if other != name} for name in MODULES}
    # What a package's __init__ offers is known to its own modules by their full names.
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, [*path, name])
            done.add(name)

    for name in graph:
        walk(name, [])


def outside(name: str) -> set[str]:
    """Packages that a module imports beside this one, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"treadle"}


def test_algorithms_import_torch_alone():
    for name in MODULES:
        if name.startswith("algorithms"):
            assert outside(name) <= {"torch"}, name
            assert all(other.startswith("algorithms") for other in imports(name)), name


def test_workers_and_simulators_know_neither_torch_nor_policies():
    """A simulator's own folder may, where the simulator is torch."""
    for name in MODULES:
        folder, _, rest = name.partition(".")
        own = folder == "simulators" and rest and MODULES[name].parent != SOURCE / "simulators"
        if folder == "workers" or (folder == "simulators" and not own):
            assert not outside(name) & {"torch", "transformers"}, name


def core() -> list[str]:
    """Modules that must work for every simulator and every policy."""
    own = {path.name for kind in ("simulators", "policies") for path in (SOURCE / kind).iterdir() if path.is_dir()}
    return [
        name
        for name in MODULES
        if name and not (name.startswith(("simulators.", "policies.")) and name.split(".")[1] in own)
    ]


FAMILIES = r"tabletop|libero|maniskill|robotwin|prismatic|openvla|smolvla|flow_matching"


@pytest.mark.parametrize("name", core())
def test_the_core_names_no_simulator_and_no_policy(name: str):
    """Neither in code nor in text that code decides by; what a person reads (docstrings, defaults of settings, help)
    may give examples.
    """
    tree = ast.parse(MODULES[name].read_text())
    documentation = {
        id(node.value)
        for body in ast.walk(tree)
        if isinstance(body, ast.Module | ast.ClassDef | ast.FunctionDef)
        for node in body.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        words: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            words = [node.value]
        elif isinstance(node, ast.Name | ast.Attribute):
            words = [node.id if isinstance(node, ast.Name) else node.attr]
        elif isinstance(node, ast.ImportFrom):
            words = [node.module or ""]
        for word in words:
            if re.search(FAMILIES, word, re.IGNORECASE):
                assert (name, word) in ALLOWED, f"{name}:{node.lineno}: {word!r}"


ALLOWED = {
    ("config.schema", "tabletop"),
    ("config.schema", "tabletop-base"),
    ("config.supervised", "openvla_oft"),
    ("gymnasium", "treadle.simulators.tabletop.gymnasium_env"),
}
"""Defaults, and the module that is there for one simulator."""


def test_reading_a_recipe_imports_neither_torch_nor_a_simulator():
    code = (
        "import sys; from treadle.config.loading import load_recipe; load_recipe('quickstart'); "
        "print([name for name in ('torch', 'transformers', 'mujoco', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
