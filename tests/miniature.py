"""A policy, rollouts and runs small enough for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fakes import scenario
from treadle.config.algorithm import find_algorithm
from treadle.config.on_policy import PPOConfig
from treadle.config.schema import (
    CriticConfig,
    EvaluationConfig,
    OptimizerConfig,
    PolicyConfig,
    SimulatorConfig,
    TrainConfig,
)
from treadle.data.demonstrations import Demonstrations
from treadle.data.noise import noise_key
from treadle.data.rollout import Rollout
from treadle.data.step import EpisodeResult
from treadle.policies.prismatic.config import tiny_config
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.prompt import build_tokenizer
from treadle.policies.prismatic.sizes import make_statistics
from treadle.policies.sampling import Sampling
from treadle.simulators.protocol import ActionDimension

IMAGE = 32
INSTRUCTIONS = ["put the red cube on the white plate", "lift the ball"]
SIMULATOR = SimulatorConfig(slots=4, horizon=8, threads=1, options={"image_size": IMAGE})

# Scenario 4: one success of three; 7: none of two; 9: both of two.
SUCCESSES = [True, False, False, False, False, True, True]
SCENARIOS = [4, 4, 4, 7, 7, 9, 9]
TWO_ARMS = tuple(
    ActionDimension(f"{arm}_{what}", kind)
    for arm in ("left", "right")
    for what, kind in (("joint", "absolute"), ("gripper", "gripper"))
)
"""Targets of two arms, with a gripper in the middle."""


def make_policy(folder: Path, *, chunk: int = 4, action_dim: int = 7, **settings: Any) -> OpenVLAOFT:
    """32 pixels, width 32, 2 layers, 7 numbers of proprioception; with logits far enough apart that mistakes show."""
    config = tiny_config(
        OpenVLAOFTConfig,
        vocabulary=build_tokenizer(INSTRUCTIONS, folder),
        width=32,
        layers=2,
        heads=2,
        mlp=64,
        image_size=IMAGE,
        chunk=chunk,
        action_dim=action_dim,
        proprioception_dim=7,
        tower_widths=((16, 16, 32, 32),),
        prompt_length=64,
        **settings,
    )
    low, high = [-0.03] * (action_dim - 1) + [0.0], [0.03] * (action_dim - 1) + [1.0]
    statistics = make_statistics("tabletop", low, high, [-1.0] * 7, [1.0] * 7, [True] * (action_dim - 1) + [False])
    policy = OpenVLAOFT.create(config, statistics, folder, seed=3)
    with torch.no_grad():
        policy.language_model.lm_head.weight.mul_(8)
    return policy


def make_demonstrations(lengths: tuple[int, ...] = (6, 4)) -> Demonstrations:
    """Random frames with actions that depend on the place in the episode."""
    rng = np.random.default_rng(0)
    count = sum(lengths)
    frame_index = np.concatenate([np.arange(n) for n in lengths])
    actions = np.repeat(np.sin(frame_index)[:, None] * 0.02, 7, axis=1).astype(np.float32)
    actions[:, 6] = frame_index % 2
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    return Demonstrations(
        frames=rng.integers(0, 256, (count, 1, IMAGE, IMAGE, 3), dtype=np.uint8),
        state=rng.uniform(-1, 1, (count, 7)).astype(np.float32),
        actions=actions,
        episode_index=episodes,
        frame_index=frame_index,
        instructions=[INSTRUCTIONS[episode] for episode in episodes],
        success=None,
        scenarios=None,
        cameras=("front",),
        fps=20,
    )


def learning_config(**sections: dict[str, Any]) -> TrainConfig:
    """Fields of sections `algorithm`, `critic`, `optimizer`, `policy`; the rest small, unclipped and unscheduled."""
    algorithm = {"epochs": 1, "minibatch": 8, "micro_batch": 4, **sections.get("algorithm", {})}
    critic = {"warmup_iterations": 0, **sections.get("critic", {})}
    return TrainConfig(
        iterations=100,
        algorithm=find_algorithm(algorithm.get("kind", "ppo"))(**algorithm),
        critic=CriticConfig(**critic),
        optimizer=OptimizerConfig(**{"gradient_norm": 1e9, **sections.get("optimizer", {})}),
        policy=PolicyConfig(**sections.get("policy", {})),
    )


def make_rollout(
    policy: PrismaticPolicy,
    decisions: int = 3,
    slots: int = 4,
    seed: int = 0,
    sampling: Sampling | None = None,
    version: int = 3,
    *,
    encode: bool = True,
) -> Rollout:
    """Decisions of the policy on random frames, with random rewards and some endings inside chunks; state [.., 5].
    Without `encode`, vision is there to be trained.
    """
    rng = np.random.default_rng(seed)
    sampling = sampling or Sampling()
    shape = (decisions, slots, policy.chunk)
    ended = rng.random(shape) < 0.2
    valid = np.cumsum(ended, -1) - ended == 0
    ended &= valid
    terminated = ended & (rng.random(shape) < 0.5)
    inputs, decided = [], []
    for _ in range(decisions):
        frames = rng.integers(0, 256, (slots, 1, IMAGE, IMAGE, 3), dtype=np.uint8)
        texts = [INSTRUCTIONS[slot % 2] for slot in range(slots)]
        prepared = policy.prepare(frames, texts, rng.uniform(-1, 1, (slots, 7)).astype(np.float32))
        inputs.append(policy.encode(prepared) if encode else prepared)
        decided.append(policy.act(inputs[-1], sampling, noise_key(rng.integers(2**32), np.arange(slots))))
    outputs = max(policy.value_outputs, 1)
    values = [torch.zeros(slots, outputs) if d.values is None else d.values for d in decided]
    truncated = ended & ~terminated
    return Rollout(
        inputs=inputs[0].of({name: torch.stack([x.tensors()[name] for x in inputs]) for name in inputs[0].tensors()}),
        choices=torch.stack([d.choice for d in decided]),
        log_probs=torch.stack([d.log_probs for d in decided]),
        values=torch.stack(values),
        state=torch.from_numpy(rng.normal(size=(decisions, slots, 2, 5)).astype(np.float32)),
        reward=torch.from_numpy(np.where(valid, rng.normal(size=shape), 0).astype(np.float32)),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated),
        success=torch.from_numpy(terminated),
        valid=torch.from_numpy(valid),
        final_values=torch.from_numpy(truncated.any(-1) * rng.normal(size=shape[:2])).float(),
        next_values=torch.from_numpy(rng.normal(size=slots)).float(),
        final_states=torch.from_numpy(truncated.any(-1)[..., None] * rng.normal(size=(*shape[:2], 5))).float(),
        next_states=torch.from_numpy(rng.normal(size=(slots, 5))).float(),
        versions=torch.full((decisions, slots), version),
        scenarios=np.full(shape[:2], scenario(0)),
        episodes=[],
        seconds={},
    )


def grouped(
    policy: PrismaticPolicy, successes: list[bool], scenarios: list[int], seed: int = 0, *, encode: bool = True
) -> Rollout:
    """Fixed length, 3 decisions of 2 actions: a success ends its episode with the second decision's first action and
    earns 1; the others are truncated at the end.
    """
    slots = len(successes)
    rollout = make_rollout(policy, 3, slots, seed, encode=encode)
    won = torch.tensor(successes)
    shape = rollout.valid.shape
    rollout.valid = torch.ones(shape, dtype=torch.bool)
    rollout.valid[1, won, 1:] = False
    rollout.valid[2, won] = False
    rollout.terminated = torch.zeros(shape, dtype=torch.bool)
    rollout.terminated[1, won, 0] = True
    rollout.truncated = torch.zeros(shape, dtype=torch.bool)
    rollout.truncated[2, ~won, -1] = True
    rollout.reward = rollout.terminated.float()
    rollout.final_values = torch.zeros(3, slots)
    rollout.scenarios = np.tile(np.array([scenario(index) for index in scenarios]), (3, 1))
    rollout.scenarios[2, won.numpy()] = None
    results = [
        EpisodeResult(scenario(index), success, success, float(success), 3 if success else 6)
        for index, success in zip(scenarios, successes, strict=True)
    ]
    rollout.episodes = sorted(results, key=lambda result: result.length)
    return rollout


def run_config(output: Path, checkpoint: Path, **fields: Any) -> TrainConfig:
    """A run of seconds on the real tabletop."""
    defaults: dict[str, Any] = {
        "name": "run",
        "output": output,
        "seed": 5,
        "device": "cpu",
        "torch_threads": 1,
        "iterations": 4,
        "decisions": 3,
        "save_every": 0,
        "simulator": SIMULATOR,
        "policy": PolicyConfig(checkpoint=str(checkpoint), frozen_dimensions=(3, 4)),
        "algorithm": PPOConfig(epochs=2, minibatch=8, micro_batch=5),
        "critic": CriticConfig(kind="privileged", width=16, epochs=2, warmup_iterations=1),
        "evaluation": EvaluationConfig(suites=("train",), episodes=1, slots=1, videos=0),
    }
    return TrainConfig(**(defaults | fields))
