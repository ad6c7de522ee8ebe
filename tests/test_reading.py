"""Files that others wrote: whatever is wrong with one is one line that names file and key, and nothing is made."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from malformed import DEEP, changed
from reporting.synthetic_run import make_run
from treadle.config.loading import load_recipe
from treadle.config.schema import TrainConfig
from treadle.data.lerobot_info import read_info
from treadle.errors import CheckpointError, ConfigError, OutputError, TreadleError
from treadle.policies.tensors import load_plain, read_torch
from treadle.reading import parse_json, path_inside, read_json
from treadle.reporting.folder import read_run


def refusals(path: Path, read: Any) -> tuple[int, int]:
    """How many changed copies of a file are refused, and how many are read; each refusal is a line with the file."""
    original = path.read_bytes()
    refused = accepted = 0
    for what, text in changed(json.loads(original)):
        path.write_text(text)
        try:
            read()
            accepted += 1
        except TreadleError as error:
            refused += 1
            said = str(error)
        else:
            continue
        assert path.name in said or path.parent.name in said, (what, said)
        assert len(said) < 2000, what
    path.write_bytes(original)
    return refused, accepted


@pytest.mark.parametrize(
    "file", ["evaluation/base.json", "videos/videos.json", "summary.json", "machine.json", "config.json"]
)
def test_files_of_a_report(tmp_path: Path, file: str) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    refused, _ = refusals(run / file, lambda: read_run(run))
    assert refused >= 8


def test_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(TrainConfig(name="a").model_dump_json())
    refused, accepted = refusals(path, lambda: load_recipe(str(path)))
    assert refused > 3 * accepted


def test_declarations_of_a_data_set(tmp_path: Path) -> None:
    camera = {"dtype": "video", "shape": [8, 8, 3], "names": ["height", "width", "channels"]}
    features = {"action": {"dtype": "float32", "shape": [7]}, "observation.images.front": camera}
    path = tmp_path / "meta" / "info.json"
    path.parent.mkdir()
    info = {"codebase_version": "v3.0", "fps": 10, "features": features, "video_path": "videos/{video_key}.mp4"}
    path.write_text(json.dumps(info))
    refused, _ = refusals(path, lambda: read_info(tmp_path))
    assert refused >= 60


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DEEP, "inside each other"),
        ('{"a": ' + "9" * 5000 + "}", "a whole number of 5000 digits (behind the key 'a')"),
        ('{"a": [' + "9" * 40 + "]}", "a[0]: found 99999999999999999999..., a whole number of 40 digits"),
        ("{", "not valid JSON"),
    ],
)
def test_json_names_the_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_json(text, "some.json", ConfigError)
    assert said in str(found.value)
    assert str(found.value).startswith("some.json: ")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(OutputError, match=r"config\.json: a device or pipe, not a file"):
        read_json(tmp_path / "config.json", OutputError)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "..", "", "a\0b", "a" * 300, 3, "C:/a", "..\\a"])
def test_paths_stay_in_their_folder(tmp_path: Path, name: Any) -> None:
    with pytest.raises(CheckpointError, match="weight_map"):
        path_inside(tmp_path, name, "weight_map", CheckpointError)


def test_a_shard_may_lie_in_a_subfolder(tmp_path: Path) -> None:
    assert path_inside(tmp_path, "weights/a.safetensors", "weight_map", CheckpointError) == (
        tmp_path / "weights" / "a.safetensors"
    )


def test_tensors_that_would_allocate_and_pickles_that_would_run(tmp_path: Path) -> None:
    path = tmp_path / "part.pt"
    torch.save({"a": torch.zeros(1).expand(2**40)}, path)
    with pytest.raises(CheckpointError, match=r"part\.pt: a: \[1099511627776\] numbers are not in a file of"):
        read_torch(path)
    torch.save({"a": Path("b")}, path)
    with pytest.raises(CheckpointError, match="holds more than tensors") as found:
        load_plain(path)
    assert "weights_only" not in str(found.value)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("part/data.pkl", pickle.dumps("a" * 10**6))
    with pytest.raises(CheckpointError, match="compressed"):
        load_plain(path)
