"""Checkpoints: whole or absent, whatever goes wrong."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from treadle.errors import CheckpointError, OutputError
from treadle.training import checkpoints
from treadle.training.checkpoints import FORMAT, CheckpointWriter, last_whole, list_checkpoints, load_trainer
from treadle.training.checksums import check_whole


class FakePolicy(nn.Module):
    """Saves a file, or fails halfway."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def save(self, directory: Path, *, merge: bool = True) -> None:
        directory.mkdir()
        (directory / "weights").write_text("half")
        if self.error is not None:
            raise self.error


def save(directory: Path, iteration: int, policy: FakePolicy | None = None, **state: Any) -> Path:
    return CheckpointWriter().save(directory, iteration, policy or FakePolicy(), state)  # type: ignore[arg-type]


def test_what_is_saved_is_loaded(tmp_path: Path):
    state = {"tensor": torch.arange(3.0), "plain": [{"a": 1, "b": [0.1, None]}]}
    path = save(tmp_path / "checkpoints", 12, **state)
    assert path.name == "iteration-000012"
    assert (path / "policy" / "weights").is_file()
    loaded = load_trainer(path)
    assert torch.equal(loaded.pop("tensor"), state["tensor"])
    assert loaded == {"format": FORMAT, "iteration": 12, "plain": state["plain"]}


@pytest.mark.parametrize("other", [{}, {"format": FORMAT + 1}])
def test_another_versions_trainer_is_refused(tmp_path: Path, other: dict[str, int]):
    checkpoint = save(tmp_path, 3)
    torch.save({"iteration": 3, **other}, checkpoint / "trainer.pt")
    found = other.get("format", 1)
    with pytest.raises(
        CheckpointError, match=rf"trainer.pt: found format {found}, .* from format {FORMAT}; .*begin anew"
    ):
        load_trainer(checkpoint)


def test_the_last_two_stay_in_order_of_iteration(tmp_path: Path):
    for iteration in (9, 10, 99, 100):
        save(tmp_path, iteration)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iteration-000099", "iteration-000100"]


def test_as_many_stay_as_are_asked_for(tmp_path: Path):
    writer = CheckpointWriter(keep=3)
    for iteration in (1, 2, 3, 4):
        writer.save(tmp_path, iteration, FakePolicy(), {})  # type: ignore[arg-type]
    assert [path.name[-1] for path in list_checkpoints(tmp_path)] == ["2", "3", "4"]


def test_an_iteration_is_saved_again(tmp_path: Path):
    save(tmp_path, 5, x=1)
    (tmp_path / "iteration-000005" / "old").touch()
    assert load_trainer(save(tmp_path, 5, x=2))["x"] == 2
    assert len(list(tmp_path.iterdir())) == 1
    assert not (tmp_path / "iteration-000005" / "old").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OutputError("full"), KeyboardInterrupt()])
def test_a_policy_that_cannot_be_written_leaves_earlier_checkpoints(tmp_path: Path, error: Exception):
    good = save(tmp_path, 1, x=1)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        save(tmp_path, 2, FakePolicy(error))
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        save(tmp_path, 1, FakePolicy(error), x=2)
    assert list(tmp_path.iterdir()) == [good]
    assert load_trainer(good)["x"] == 1


def test_a_full_disk_under_torch_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good = save(tmp_path, 1)

    def fail(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(checkpoints.torch, "save", fail)
    with pytest.raises(OutputError, match=r"iteration-000002: cannot save the checkpoint .*failed writing.*free space"):
        save(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [good]


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path):
    (tmp_path / ".saving-killed" / "policy").mkdir(parents=True)
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-000001"]


def test_no_checkpoints(tmp_path: Path):
    assert list_checkpoints(tmp_path / "absent") == []


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "text", "missing", "code"])
def test_a_damaged_trainer_file_is_named(tmp_path: Path, damage: str):
    checkpoint = save(tmp_path, 3, tensor=torch.arange(1000.0))
    path = checkpoint / "trainer.pt"
    content = path.read_bytes()
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "garbage": bytes(range(256)) * 8, "text": b"hello\n"}
    if damage == "missing":
        path.unlink()
    elif damage == "code":
        torch.save({"iteration": 3, "path": Path("/")}, path)
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match=r"trainer.pt: not readable as .*; remove .*iteration-000003 to resume"):
        load_trainer(checkpoint)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("flip", r"trainer.pt: its content is not what was written"),
        ("weights", r"policy/weights: its content is not"),
        ("cut", r"policy/weights: 2 bytes; 4 were written"),
        ("missing", r"trainer.pt: missing"),
        ("unlisted", r"checksums.json: missing"),
        ("text", r"checksums.json: not valid JSON"),
        ("outside", r"checksums.json: found .*leads out of"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_set_aside_for_the_one_before(tmp_path: Path, damage: str, said: str):
    good, bad = save(tmp_path, 1, tensor=torch.arange(100.0)), save(tmp_path, 2, tensor=torch.arange(100.0))
    check_whole(bad)
    trainer, weights, sums = bad / "trainer.pt", bad / "policy" / "weights", bad / "checksums.json"
    match damage:
        case "flip":
            # In the middle of the tensor's numbers, where nothing but the sum tells.
            flip(trainer, trainer.read_bytes().index(torch.arange(100.0).numpy().tobytes()) + 200)
            load_trainer(bad)
        case "weights":
            flip(weights, 1)
        case "cut":
            weights.write_bytes(weights.read_bytes()[:2])
        case "missing":
            trainer.unlink()
        case "unlisted":
            sums.unlink()
        case "text":
            sums.write_text("{")
        case _:
            sums.write_text(sums.read_text().replace("policy/weights", "../../weights"))
    notes: list[str] = []
    assert last_whole(tmp_path, notes.append) == good
    (aside,) = (path for path in tmp_path.iterdir() if path != good)
    assert aside.name.startswith("not-whole-iteration-000002-")
    assert len(notes) == 1
    assert re.search(said, notes[0])
    assert f"is now {aside}; going on from iteration-000001" in notes[0]
    notes.clear()
    assert last_whole(tmp_path, notes.append) == good
    assert not notes


def test_a_run_without_a_whole_checkpoint_does_not_begin_anew_unasked(tmp_path: Path):
    for iteration in (1, 2):
        (save(tmp_path, iteration) / "trainer.pt").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"iteration-000002/trainer.pt: 7 bytes; .*none before it is; begin anew"):
        last_whole(tmp_path, print)
    assert len(list_checkpoints(tmp_path)) == 2, "nothing was moved"
    assert last_whole(tmp_path / "absent", print) is None


def test_a_state_of_another_iteration_than_its_folder_is_refused(tmp_path: Path):
    save(tmp_path, 1).rename(tmp_path / "iteration-000009")
    with pytest.raises(CheckpointError, match=r"iteration: found 1, in a folder 'iteration-000009'"):
        load_trainer(tmp_path / "iteration-000009")


class Waiting(nn.Module):
    """Saves its state when it is let, and fails if it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.let = threading.Event()
        self.error = error

    def save(self, directory: Path, *, merge: bool = True) -> None:
        assert self.let.wait(30)
        if self.error is not None:
            raise self.error
        directory.mkdir()
        torch.save({**self.state_dict(), "named": dict(self.named_parameters())["weight"]}, directory / "weights")


def test_in_the_background_a_checkpoint_is_of_the_moment_of_the_call(tmp_path: Path):
    policy: Any = Waiting()
    writer, tensor = CheckpointWriter(background=True), torch.arange(3.0)
    path = writer.save(tmp_path, 1, policy, {"nested": [{"tensor": tensor}]})
    with torch.no_grad():
        tensor.zero_()
        policy.weight.zero_()
    assert list_checkpoints(tmp_path) == []
    policy.let.set()
    writer.finish()
    assert list_checkpoints(tmp_path) == [path]
    assert load_trainer(path)["nested"][0]["tensor"].tolist() == [0, 1, 2]
    saved = torch.load(path / "policy" / "weights")
    assert [saved["weight"].tolist(), saved["named"].tolist()] == [[1.0] * 3] * 2


def test_an_error_in_the_background_is_raised_by_the_next_save(tmp_path: Path):
    policy: Any = Waiting(OutputError("full"))
    policy.let.set()
    writer = CheckpointWriter(background=True)
    writer.save(tmp_path, 1, policy, {})
    with pytest.raises(OutputError, match="full"):
        writer.save(tmp_path, 2, policy, {})
    policy.error = OSError(28, "No space left on device")
    writer.save(tmp_path, 2, policy, {})
    with pytest.raises(OutputError, match=r"iteration-000002: cannot save the checkpoint .*No space"):
        writer.finish()
    writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_rank_0_does_not_wait_for_ever(tmp_path: Path):
    """Two ranks that do not see one folder, and one that could not write."""
    (tmp_path / "trainer-00001-of-00002.sha256").touch()
    with pytest.raises(OSError, match=r"trainer-00002-of-00002.safetensors of rank 1 was not there within 0.05 s"):
        checkpoints._await_parts(tmp_path, 2, 0.05)
    (tmp_path / "trainer-00002-of-00002.failed").write_text("disk full")
    with pytest.raises(OSError, match="rank 1 could not write its part: disk full"):
        checkpoints._await_parts(tmp_path, 2, 30)
