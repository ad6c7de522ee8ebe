"""A SmolVLA of published size and types with random weights: seconds and memory to load it, to act, and to update it.

Its directory is written first, as `lerobot/smolvla_base` is laid out. The update is PPO's, with a value head: one step
of the expert, or of adapters on it, over a few decisions whose images and prompts were read while acting.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.output import write_record
from benchmarks.random_rollout import random_rollout
from benchmarks.timing import peak_memory
from treadle.config.loading import read_config
from treadle.config.schema import TrainConfig
from treadle.devices import prepare_cpu
from treadle.errors import CheckpointError
from treadle.policies.checkpoint import assign
from treadle.policies.load import load_policy
from treadle.policies.protocol import Policy, Sampling
from treadle.policies.smolvla.config import ACTION, STATE, Published, Settings
from treadle.policies.smolvla.directory import Directory, new_scales
from treadle.policies.smolvla.inputs import SmolVLAInputs
from treadle.policies.smolvla.policy import SmolVLA
from treadle.policies.smolvla.processors import Processors
from treadle.policies.smolvla.sizes import Sizes
from treadle.policies.smolvla.tiny import build_tokenizer, feature
from treadle.training.algorithm import Training
from treadle.training.on_policy.ppo import PPO

T = TypeVar("T")

INSTRUCTION = "put the red cube on the white plate"
PROMPT, STATE_NUMBERS, ACTIONS, CAMERA = 48, 6, 6, 256
"""As `lerobot/smolvla_base` has them: ids of a prompt, joints, actions, and a camera's side."""
CHUNK = 10
"""C; the network predicts more."""


def run(
    json: Path | None,
    cameras: int,
    decisions: int,
    steps: int,
    lora: int,
    threads: int,
    dtype: str = "auto",
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Write, load, act and update; returns the record. `dtype` auto keeps the published types, and `sizes` None are the
    published ones.
    """
    prepare_cpu(threads)
    torch.manual_seed(0)
    cpu, seconds, memory = torch.device("cpu"), dict[str, float](), dict[str, float]()

    def measure(name: str, work: Callable[[], T]) -> T:
        found: list[T] = []

        def timed() -> None:
            began = time.perf_counter()
            found.append(work())
            seconds[name] = time.perf_counter() - began

        memory[name] = peak_memory(timed, cpu)
        return found[0]

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "smolvla"
        measure("write", lambda: write_random(directory, cameras, sizes or Sizes()))
        options: dict[str, Any] = {"steps": steps, "chunk": min(CHUNK, (sizes or Sizes()).chunk)}
        if sizes is not None:
            options |= {"head": sizes.head, "vision_head": sizes.vision_width // sizes.vision_heads}
        policy = measure("load", lambda: load_policy(directory, device="cpu", dtype=dtype, **options))
        assert isinstance(policy, SmolVLA)
        if lora:
            policy.add_lora(lora)
        policy.add_value_head(1)
        policy.freeze()

        def observe(rng: np.random.Generator, slots: int) -> SmolVLAInputs:
            shape = (slots, cameras, CAMERA, CAMERA, 3)
            frames = rng.integers(0, 256, shape, dtype=np.uint8)
            state = rng.normal(size=(slots, STATE_NUMBERS)).astype(np.float32)
            return policy.encode(policy.prepare(frames, [INSTRUCTION] * slots, state))

        inputs = measure("read_one", lambda: observe(np.random.default_rng(0), 1))
        measure("act_one", lambda: policy.act(inputs, Sampling()))
        rollout = measure("play", lambda: random_rollout(policy, observe, 0, 1, decisions))
        ppo = _ppo(policy, decisions)
        metrics = measure("update", lambda: ppo.update([rollout], 0))
    figures = {
        "parameters": sum(p.numel() for p in policy.parameters()),
        "trained_parameters": sum(p.numel() for p in ppo.trained),
        "types": sorted({str(p.dtype).removeprefix("torch.") for p in policy.parameters()}),
        "policy": policy.describe(),
        "cameras": cameras,
        "decisions": decisions,
        "lora": lora,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "peak_memory_mb": memory,
        "update": {
            name: metrics[f"update/{name}"]
            for name in ("gradient_norm", "log_prob_gap_mean", "first_kl", "unmoved_share", "steps")
            if f"update/{name}" in metrics
        },
    }
    return write_record(json, "smolvla", figures)


def write_random(directory: Path, cameras: int, sizes: Sizes) -> None:
    """A directory of random weights in the published types: bfloat16, but for float32 heads and what the expert makes
    of the prefix's keys and values.
    """
    images = {f"observation.images.camera{i + 1}": feature("VISUAL", 3, CAMERA, CAMERA) for i in range(cameras)}
    config: dict[str, Any] = {
        "type": "smolvla",
        "chunk_size": sizes.chunk,
        "n_action_steps": sizes.chunk,
        "input_features": {STATE: feature("STATE", STATE_NUMBERS), **images},
        "output_features": {ACTION: feature("ACTION", ACTIONS)},
        "max_state_dim": sizes.state,
        "max_action_dim": sizes.action,
        "resize_imgs_with_padding": [sizes.image, sizes.image],
        "tokenizer_max_length": PROMPT,
        "num_vlm_layers": sizes.layers,
        "expert_width_multiplier": sizes.expert_width / sizes.width,
    }
    published = Published.model_validate(config)
    processors = Processors("none", {}, published.normalization_mapping, 1e-8, PROMPT, {})
    scale = {"mean": [0.0] * ACTIONS, "std": [1.0] * ACTIONS, "mask": [True] * ACTIONS}
    scales = new_scales(processors, published, "random", {"action": scale, "proprio": scale})
    settings = Settings(chunk=sizes.chunk, steps=10, cameras=cameras)
    tokenizer, _ = build_tokenizer([INSTRUCTION])
    found = Directory(config, published, settings, sizes, processors, scales, tokenizer, {})
    policy = SmolVLA(found, allocate=False)
    assign(policy.model, {name: _random(name, p) for name, p in policy.model.named_parameters()}, directory)
    policy.save(directory)


def _random(name: str, parameter: nn.Parameter) -> Tensor:
    odd = "lm_expert" in name and name.endswith(("k_proj.weight", "v_proj.weight")) and int(name.split(".")[3]) % 2
    dtype = torch.float32 if odd or not name.startswith("vlm_with_expert.") else torch.bfloat16
    if "norm" in name and name.endswith("weight"):
        return torch.ones(parameter.shape, dtype=dtype)
    return torch.empty(parameter.shape, dtype=dtype).normal_(std=0.02)


def _ppo(policy: SmolVLA, decisions: int) -> PPO:
    config = read_config(
        TrainConfig,
        None,
        [
            "algorithm.epochs=1",
            f"algorithm.minibatch={decisions}",
            "algorithm.micro_batch=2",
            "algorithm.reward_level=chunk",
            "algorithm.ratio_level=chunk",
            "critic.warmup_iterations=0",
            "optimizer.learning_rate=1e-5",
        ],
    )
    return PPO(Training(policy, None, config, torch.device("cpu"), _no_reference))


def _no_reference() -> Policy:
    raise CheckpointError("this update has no reference")
