"""LeRobot directories are read as lerobot reads them, or refused by key, and written for lerobot to read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from smolvla_samples import FIXTURE, HEADS, TASKS
from torch import Tensor
from transformers import AutoTokenizer

from rounding import is_same
from treadle.data.noise import noise_key
from treadle.errors import CheckpointError, ConfigError
from treadle.policies.checkpoint import read_json
from treadle.policies.flow_matching.chain import integrate
from treadle.policies.load import load_policy, policy_class
from treadle.policies.sampling import Sampling
from treadle.policies.smolvla import SmolVLA
from treadle.policies.smolvla.inputs import SmolVLAInputs

Load = Callable[..., SmolVLA]
Changed = Callable[..., Path]


def act(policy: SmolVLA, inputs: SmolVLAInputs, start: Tensor) -> Tensor:
    """Actions from a given start of the chain, without noise."""
    with torch.no_grad():
        end = integrate(lambda x, t: policy.velocities(inputs, x, t), start, policy.noise.steps)
    return policy.actions_of(end)


def test_inputs_and_actions_are_lerobots(
    load: Load, prepare: Callable[[SmolVLA], SmolVLAInputs], expected: dict[str, Tensor]
):
    policy = load()
    inputs = prepare(policy)
    assert torch.equal(inputs.ids, expected["tokens"])
    assert torch.equal(inputs.mask, expected["mask"])
    assert torch.equal(inputs.state[:, :5], expected["normalized_state"])
    assert not inputs.state[:, 5:].any()
    assert is_same(act(policy, inputs, expected["noise"]), expected["acted"], 4e-3)
    assert (policy.chunk, policy.predicted, policy.noise.steps) == (6, 6, 4)


def test_ids_are_those_of_transformers(load: Load):
    theirs = AutoTokenizer.from_pretrained(FIXTURE)
    texts = [text if text.endswith("\n") else f"{text}\n" for text in TASKS]
    wanted = theirs(texts, padding="max_length", max_length=10, padding_side="right", return_tensors="pt")
    ids, mask = load().prompts.read(TASKS)
    assert torch.equal(ids, wanted["input_ids"])
    assert torch.equal(mask, wanted["attention_mask"].bool())


def test_a_long_instruction_is_refused(load: Load):
    with pytest.raises(ConfigError, match="11 tokens with its new line; the policy reads 10"):
        load().prompts.read(["abcdefghij"])


def test_types_are_as_stored(load: Load):
    types = {name: x.dtype for name, x in load().named_parameters()}
    assert types["model.state_proj.weight"] == torch.float32
    assert types["model.vlm_with_expert.lm_expert.layers.0.self_attn.k_proj.weight"] == torch.bfloat16
    assert {x.dtype for x in load(dtype=torch.float32).parameters()} == {torch.float32}


def test_a_saved_directory_acts_the_same_and_names_its_settings(
    load: Load, prepare: Callable[[SmolVLA], SmolVLAInputs], expected: dict[str, Tensor], tmp_path: Path
):
    policy = load(chunk=3, steps=5, level=0.3)
    policy.save(tmp_path / "saved")
    again = SmolVLA.load(tmp_path / "saved", device=torch.device("cpu"), dtype=None)
    before, after = (act(each, prepare(each), expected["noise"]) for each in (policy, again))
    assert torch.equal(before, after)
    assert again.found.settings == policy.found.settings
    config = read_json(tmp_path / "saved" / "config.json")
    assert (config["n_action_steps"], config["num_steps"]) == (3, 5)
    # lerobot refuses keys that it does not know, and takes cameras in their order.
    assert list(config) == list(read_json(FIXTURE / "config.json"))
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    original = load_file(FIXTURE / "model.safetensors")
    assert stored.keys() == original.keys()
    assert all(torch.equal(x, original[name]) and x.dtype == original[name].dtype for name, x in stored.items())


@pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json"])
def test_processors_are_written_as_lerobot_writes_them(load: Load, tmp_path: Path, name: str):
    load().save(tmp_path / "saved")
    found, wanted = (json.loads((folder / name).read_text()) for folder in (tmp_path / "saved", FIXTURE))
    assert found == wanted
    for step in wanted["steps"]:
        if "state_file" in step:
            mine, theirs = (load_file(folder / step["state_file"]) for folder in (tmp_path / "saved", FIXTURE))
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_the_order_of_cameras_survives(load: Load, changed: Changed, tmp_path: Path):
    features = read_json(FIXTURE / "config.json")["input_features"]
    swapped = {key: features[key] for key in reversed(features)}
    load(changed({"input_features": swapped})).save(tmp_path / "saved")
    assert list(read_json(tmp_path / "saved" / "config.json")["input_features"]) == list(swapped)


def test_recognition():
    assert SmolVLA.recognizes(FIXTURE, read_json(FIXTURE / "config.json"))
    assert not SmolVLA.recognizes(FIXTURE, {"model_type": "openvla"})
    assert policy_class("treadle.policies.smolvla:SmolVLA") is SmolVLA


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prefix_length": 64}, "prefix_length: found 64"),
        ({"num_expert_layers": 2}, "num_expert_layers: found 2"),
        ({"attention_mode": "self_attn"}, "attention_mode: found .self_attn.; allowed: 'cross_attn'"),
        ({"add_image_special_tokens": True}, "add_image_special_tokens: found true"),
        ({"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha: found true"),
        ({"n_obs_steps": 2}, "n_obs_steps: found 2"),
        ({"rtc_config": {"enabled": True}}, "rtc_config"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"num_vlm_layers": 8}, "num_vlm_layers: found 8; the weights have 4"),
        ({"expert_width_multiplier": 0.5}, "expert_width_multiplier: found 24; the weights have 36"),
        ({"resize_imgs_with_padding": [32, 32]}, r"resize_imgs_with_padding: found \[32, 32\]"),
        ({"normalization_mapping": {"VISUAL": "MEAN_STD"}}, "normalization_mapping.VISUAL: found .MEAN_STD."),
        ({"n_action_steps": 7}, "chunk: found 7; allowed: at most the 6"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_key(load: Load, changed: Changed, config: Any, message: str):
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load(changed(config))


def test_an_unknown_step_of_a_processor_is_refused(load: Load, changed: Changed):
    directory = changed()
    path = directory / "policy_preprocessor.json"
    content = json.loads(path.read_text())
    content["steps"].insert(1, {"registry_name": "delta_action_processor", "config": {}})
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r'steps\[1\]: found "delta_action_processor"; allowed: to_batch'):
        load(directory)


def test_heads_that_no_file_says(load: Load):
    with pytest.raises(CheckpointError, match=r"head 64: .* attention 48 wide; set policy\.options\.head"):
        SmolVLA.load(FIXTURE, device=torch.device("cpu"), dtype=None)


def in_group(group: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Statistics as `lerobot/smolvla_base` keeps them: of actions alone, in a group."""
    return lambda found: {f"{group}.{name}": x for name, x in found.items() if name.startswith("action")}


def test_missing_statistics_are_an_error_that_lists_the_groups(load: Load, changed: Changed):
    directory = changed(statistics=in_group("so100.buffer"))
    with pytest.raises(CheckpointError, match=r"no statistics of actions without .* there are: groups so100\. Choose"):
        load(directory)
    with pytest.raises(CheckpointError, match=r"of the group 'so101'; there are: groups so100"):
        load(directory, statistics="so101")
    with pytest.raises(CheckpointError, match=r"no statistic 'observation\.state\.mean'.*there are: so100: action\."):
        load(directory, statistics="so100")


def test_a_group_is_chosen_and_written_where_lerobot_looks(load: Load, changed: Changed, tmp_path: Path):
    directory = changed(statistics=lambda found: {f"so100.buffer.{name}": x for name, x in found.items()})
    policy = load(directory, statistics="so100")
    policy.save(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")
    original = load_file(FIXTURE / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")
    assert torch.equal(stored["action.mean"], original["action.mean"])
    again = SmolVLA.load(tmp_path / "saved", device=torch.device("cpu"), dtype=None)
    named = SmolVLA.load(tmp_path / "saved", device=torch.device("cpu"), dtype=None, statistics="so100")
    assert again.found.scales is not None
    assert named.found.scales is not None
    assert again.found.scales.name == named.found.scales.name == "so100"


def test_a_base_without_statistics_is_a_start_for_imitation(load: Load, changed: Changed, tmp_path: Path):
    policy = load(changed(statistics=in_group("so100.buffer")), without_statistics=True)
    with pytest.raises(ConfigError, match="no statistics yet"):
        policy.targets(torch.zeros(1, 6, 3))
    with pytest.raises(ConfigError, match="not saved"):
        policy.save(tmp_path / "saved")
    part = {"mean": [1.0, 0.0, 0.0], "std": [2.0, 1.0, 1.0], "mask": [True] * 3}
    proprio = {"mean": [0.0] * 5, "std": [1.0] * 5, "mask": [True] * 5}
    policy.rescale("mine", {"action": part, "proprio": proprio})
    wanted = torch.tensor([[[(5.0 - 1) / 2, 0, 0, 0, 0, 0, 0, 0]]])
    found = policy.targets(torch.tensor([[[5.0, 0, 0]]]))
    assert torch.allclose(found, wanted)


def test_a_robot_with_other_numbers_of_joints_takes_its_place(load: Load, tmp_path: Path):
    """lerobot does so too: both are padded, to 8 here."""
    policy, rng = load(without_statistics=True), np.random.default_rng(0)
    mask = {"mask": [True] * 7}
    part = {"mean": [1.0] * 7, "std": [2.0] * 7, **mask}
    policy.rescale("arms", {"action": part, "proprio": part})
    frames = [rng.integers(0, 256, (1, *size, 3), dtype=np.uint8) for size in ((48, 80), (64, 64))]
    state = rng.uniform(-1, 1, (1, 7)).astype(np.float32)
    inputs = policy.prepare(frames, ["lift"], state)
    assert inputs.state[0].tolist() == pytest.approx([*((state[0] - 1) / 2).tolist(), 0], abs=1e-6)
    keys = noise_key(1)
    actions = policy.act(inputs, Sampling(temperature=0), keys).actions
    assert actions.shape[2] == policy.action_dim == 7
    policy.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["output_features"]["action"]["shape"] == config["input_features"]["observation.state"]["shape"] == [7]
    again = load_policy(tmp_path / "saved", device="cpu")
    inputs = again.prepare(frames, ["lift"], state)
    assert torch.equal(again.act(inputs, Sampling(temperature=0), keys).actions, actions)
    with pytest.raises(ConfigError, match=r"has 'action' of 9 numbers; the network takes 8 \(max_action_dim\)"):
        policy.rescale("more", {"action": {"mask": [True] * 9}, "proprio": part})


def old(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as lerobot wrote them before it had processors, of a compiled policy."""
    weights = {name.replace("model.", "model._orig_mod.", 1): x for name, x in found.items()}
    for place in ("normalize_targets", "unnormalize_outputs"):
        weights |= {f"{place}.buffer_action.mean": torch.tensor([1.0, 2.0, 3.0])}
        weights |= {f"{place}.buffer_action.std": torch.tensor([0.5, 0.5, 0.5])}
    weights |= {"normalize_inputs.buffer_observation_state.mean": torch.arange(5.0)}
    return weights | {"normalize_inputs.buffer_observation_state.std": torch.full((5,), 2.0)}


PROCESSORS = tuple(path.name for path in FIXTURE.glob("policy_*"))


def test_statistics_among_the_weights_and_names_of_compiled_ones(load: Load, changed: Changed, tmp_path: Path):
    policy = load(changed(weights=old, remove=PROCESSORS))
    assert torch.allclose(policy.targets(torch.tensor([[[2.0, 2, 2]]]))[0, 0, :3], torch.tensor([2.0, 0, -2]))
    plain = load().model.state_dict()
    assert all(torch.equal(x, plain[name]) for name, x in policy.model.state_dict().items())
    # What is written is of today's generation.
    policy.save(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == load_file(FIXTURE / "model.safetensors").keys()
    saved = load_file(tmp_path / "saved" / "policy_preprocessor_step_5_normalizer_processor.safetensors")
    assert saved["observation.state.mean"].tolist() == [0, 1, 2, 3, 4]


def test_tensors_of_nothing_known_are_refused(load: Load, changed: Changed):
    with pytest.raises(CheckpointError, match=r"critic\.weight: unknown tensor"):
        load(changed(weights=lambda found: found | {"critic.weight": torch.ones(1)}))


def test_tensors_that_are_missing_are_named(load: Load, changed: Changed):
    with pytest.raises(CheckpointError, match=r"no tensor model\.state_proj\.weight"):
        load(changed(weights=lambda found: {name: x for name, x in found.items() if "state_proj" not in name}))


def test_a_directory_without_its_language_head_is_whole(load: Load, changed: Changed, tmp_path: Path):
    directory = changed(weights=lambda x: {name: t for name, t in x.items() if "lm_head" not in name})
    load(directory).save(tmp_path / "saved")
    assert not any("lm_head" in name for name in load_file(tmp_path / "saved" / "model.safetensors"))


def test_a_tokenizer_that_is_nowhere(load: Load, changed: Changed, tmp_path: Path):
    directory = changed({"vlm_model_name": "no/such-model"}, remove=("tokenizer.json",))
    with pytest.raises(CheckpointError, match=r"hf download no/such-model tokenizer\.json"):
        load(directory)
    assert load(directory, tokenizer=str(FIXTURE)).prompts.length == 10
    with pytest.raises(CheckpointError, match=r"policy\.options\.tokenizer .*: no tokenizer\.json there"):
        load(directory, tokenizer=str(tmp_path))


def test_inspection_tells_settings_and_statistics():
    found = SmolVLA.examine(FIXTURE, **HEADS)
    assert found.policy == "smolvla"
    assert found.settings["chunk"] == 6
    assert found.statistics == {"plain": 3}
    assert found.descriptions["cameras"] == "observation.images.camera1, observation.images.camera2"
    assert found.types == {"BF16": 110, "F32": 14}
    assert not found.not_finite
