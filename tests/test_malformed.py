"""Malformed input on the command line: exit code 2, one line that names what is wrong, and nothing written."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from malformed import Malformed, checkpoints, datasets, overrides, recipes, reports
from reporting.synthetic_run import make_run
from treadle.cli import app
from treadle.policies.load import load_policy
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.runtime import loop

OFFICIAL = Path(__file__).parent / "fixtures" / "openvla_oft_tiny"
SLOWEST, LONGEST = 10.0, 120.0
"""Seconds of the processor, and of any clock on a machine that is loaded, within which an input is refused."""
SHARES = {
    "recipes": (10, 2),
    "overrides": (10, 2),
    "checkpoints": (150, 10),
    "adapters": (30, 5),
    "parts": (2, 1),
    "reports": (80, 40),
    "datasets": (200, 60),
}
"""Of so many inputs one is tried, by the fast tests and by the full ones; those of checkpoints take a second each."""
EXPECTED = 2000
"""Inputs that are refused, of all kinds together."""


def _recipes(tmp_path: Path, checkpoint: Path) -> Iterator[Malformed]:
    return recipes(tmp_path)


def _overrides(tmp_path: Path, checkpoint: Path) -> Iterator[Malformed]:
    return overrides()


def _checkpoints(tmp_path: Path, checkpoint: Path) -> Iterator[Malformed]:
    return checkpoints(shutil.copytree(checkpoint, tmp_path / "tiny"))


def _adapters(tmp_path: Path, checkpoint: Path) -> Iterator[Malformed]:
    policy = load_policy(checkpoint, device="cpu")
    assert isinstance(policy, PrismaticPolicy)
    policy.add_lora(4, alpha=2)
    policy.save(tmp_path / "adapted", merge=False)
    return checkpoints(tmp_path / "adapted", "lora_adapter/*")


def _parts(tmp_path: Path, checkpoint: Path) -> Iterator[Malformed]:
    return checkpoints(shutil.copytree(OFFICIAL, tmp_path / "official"), "*.pt")


def _datasets(tmp_path: Path, checkpoint: Path) -> Iterator[Malformed]:
    arms = Path(__file__).parent / "fixtures" / "lerobot_arms"
    for name in ("v2.1", "v3.0", "v3.0-images"):
        yield from datasets(shutil.copytree(arms / name, tmp_path / name))


def _reports(tmp_path: Path, checkpoint: Path) -> Iterator[Malformed]:
    return reports(make_run(tmp_path / "run", iterations=2))


KINDS: dict[str, Callable[[Path, Path], Iterator[Malformed]]] = {
    "recipes": _recipes,
    "overrides": _overrides,
    "checkpoints": _checkpoints,
    "adapters": _adapters,
    "parts": _parts,
    "reports": _reports,
    "datasets": _datasets,
}


class _AcceptedError(Exception):
    """A run would begin."""


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def check(case: Malformed, folder: Path) -> bool:
    """Whether an input is refused; what is accepted is a value that the command may have, or does not read."""
    original = case.path.read_bytes() if case.path is not None and case.path.exists() else None
    if case.path is not None:
        case.path.write_bytes(case.content)
    before, worked, began = listing(folder), time.process_time(), time.monotonic()
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, list(case.arguments))
    worked, took, after = time.process_time() - worked, time.monotonic() - began, listing(folder)
    if case.path is not None and original is not None:
        case.path.write_bytes(original)
    assert worked < SLOWEST, f"{case.label}: {worked:.1f} s of work"
    assert took < LONGEST, f"{case.label}: {took:.1f} s"
    if isinstance(result.exception, _AcceptedError) or result.exit_code == 0:
        return False
    assert result.exit_code == 2, f"{case.label}: {result.exception!r}"
    assert after == before, f"{case.label}: it wrote {after.keys() - before.keys()}"
    said = result.stderr.strip()
    assert said.startswith(("error: ", "Usage")), case.label
    assert "Traceback" not in said, case.label
    assert "weights_only" not in said, case.label
    assert len(said) < 3000, case.label
    assert any(name in said for name in case.named), f"{case.label}: {said}"
    return True


def refuse(kind: str, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> int:
    """How many inputs of a kind are refused, of every so many."""

    def begin(config: object) -> None:
        raise _AcceptedError(config)

    monkeypatch.setattr(loop, "train", begin)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    refused, wrong = 0, list[str]()
    for case in list(KINDS[kind](work, checkpoint))[::every]:
        # One that is wrong does not hide those after it.
        try:
            refused += check(case, work)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_malformed_inputs(kind: str, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    assert refuse(kind, tmp_path, checkpoint, monkeypatch, every=SHARES[kind][0]) > 10


@pytest.mark.full
def test_thousands_of_malformed_inputs(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    refused: dict[str, int] = {}
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        refused[kind] = refuse(kind, folder, checkpoint, monkeypatch, every=SHARES[kind][1])
    print(refused)
    assert sum(refused.values()) >= EXPECTED, refused
