"""Which policy a published directory holds."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from policy_samples import Official

from treadle.errors import CheckpointError
from treadle.policies import load_policy
from treadle.policies.load import examine_policy
from treadle.policies.prismatic.recognition import Family, recognize

OFT_CODE = "class OpenVLAForActionPrediction:\n    def _regression_or_discrete_prediction(self): ...\n"
CODE = "class OpenVLAForActionPrediction:\n    def predict_action(self): ...\n"
LOCAL = {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"}


def remote(repository: str) -> dict[str, Any]:
    return {"auto_map": {"AutoModelForVision2Seq": f"{repository}--{LOCAL['AutoModelForVision2Seq']}"}}


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({"action_head--1_checkpoint.pt": ""}, {}, Family.OFT),
        ({"modeling_prismatic.py": OFT_CODE}, {"auto_map": LOCAL}, Family.OFT),
        ({"modeling_prismatic.py": CODE, "constants.py": "NUM_ACTIONS_CHUNK = 8"}, {}, Family.OFT),
        ({"modeling_prismatic.py": CODE}, {"auto_map": LOCAL}, Family.OPENVLA),
        ({}, {"num_action_chunks": 8}, Family.OFT),
        ({}, remote("openvla/openvla-7b"), Family.OPENVLA),
        ({}, remote("someone/openvla-7b-oft-finetuned-libero"), Family.OFT),
        ({}, {"auto_map": LOCAL}, Family.UNKNOWN),
        ({}, {"llm_backbone_id": "vicuna-v15-7b"}, Family.OPENVLA),
        ({}, {"auto_map": None}, Family.UNKNOWN),
        ({}, {}, Family.UNKNOWN),
    ],
)
def test_recognition(tmp_path: Path, files: dict[str, str], config: dict[str, Any], expected: Family) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert recognize(tmp_path, config)[0] is expected


def copy(official: Official, folder: Path, code: str | None = None) -> Path:
    """Without `.pt` parts: OpenVLA-OFT with action tokens, as RL leaves it."""
    folder.mkdir()
    for path in official.directory.iterdir():
        if path.suffix != ".pt":
            (folder / path.name).symlink_to(path)
    if code is not None:
        (folder / "modeling_prismatic.py").write_text(code)
    return folder


def test_tokens_without_parts_are_recognised_by_the_code(official: Official, tmp_path: Path) -> None:
    folder = copy(official, tmp_path / "rl", OFT_CODE)
    policy = load_policy(folder, device="cpu", statistics="libero_spatial")
    assert (policy.kind, policy.chunk) == ("openvla_oft", 8)
    found = examine_policy(folder)
    assert found.descriptions["taken for"] == (
        "openvla_oft: modeling_prismatic.py has _regression_or_discrete_prediction"
    )
    assert found.descriptions["constants"].startswith(
        "chunk 8, quantiles: those of libero, by the name of the data set"
    )


def test_where_both_are_possible_it_is_said(
    official: Official, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy(official, tmp_path / "either")
    with caplog.at_level(logging.WARNING, "treadle"):
        policy = load_policy(folder, device="cpu", statistics="libero_spatial")
    assert policy.kind == "openvla"
    assert "taken for OpenVLA; if it is OpenVLA-OFT with action tokens, say policy.kind=openvla_oft" in caplog.text
    assert "say policy.kind=openvla_oft" in examine_policy(folder).descriptions["taken for"]
    caplog.clear()
    assert load_policy(folder, device="cpu", statistics="libero_spatial", kind="openvla").kind == "openvla"
    assert not caplog.records


def test_a_vicuna(official_openvla: Official, tmp_path: Path) -> None:
    folder = copy(official_openvla, tmp_path / "v01")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    config |= {"llm_backbone_id": "vicuna-v15-7b", "hf_llm_id": "lmsys/vicuna-7b-v1.5"}
    (folder / "config.json").write_text(json.dumps(config))
    policy: Any = load_policy(folder, device="cpu", statistics="bridge_orig", kind="openvla")
    assert policy.prompts.style == "vicuna"
    assert policy.config.prompt_length == 256
    assert examine_policy(folder).descriptions["prompt"] == "vicuna's, by llm_backbone_id"
    with pytest.raises(CheckpointError, match="llm_backbone_id: found 'vicuna-v15-7b'; allowed for OpenVLA-OFT"):
        load_policy(folder, device="cpu", statistics="bridge_orig", kind="openvla_oft")
    # What it saves asks as before.
    policy.save(tmp_path / "saved")
    policy = load_policy(tmp_path / "saved", device="cpu", statistics="bridge_orig")
    assert policy.prompts.style == "vicuna"
