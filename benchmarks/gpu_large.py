"""Checks of `benchmarks.gpu` with OpenVLA-OFT of 7B parameters and random weights, each beside its predicted memory.

Predictions are of weights, gradients, masters and moments, without activations: 2 bytes for a frozen parameter in
bfloat16 and 16 for a trained one of any type (bfloat16: 2 and 2, with a float32 master and two moments; float32: 4
each).
"""

import gc
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from benchmarks.gpu_task import Task
from benchmarks.policy import INSTRUCTIONS, make_inputs, make_policy
from benchmarks.random_rollout import random_rollout
from benchmarks.timing import peak_memory, synchronize, time_once, time_rounds
from treadle.config.loading import read_config
from treadle.config.on_policy import OnPolicyConfig
from treadle.config.schema import TrainConfig
from treadle.data.noise import noise_key
from treadle.data.rollout import Rollout
from treadle.errors import CheckpointError
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.protocol import Policy, Sampling
from treadle.runtime.trainer import Trainer
from treadle.runtime.weights import load_state
from treadle.training.algorithm import Training

T = TypeVar("T")

KIND = "openvla_oft"
TRAINED_BYTES = 16
STEP_BYTES = 4
"""For each trained parameter in bfloat16, while the optimizer steps: gradients in float32 beside those in bfloat16."""
SPARE_BYTES = 5e9
"""For activations, where a size is chosen."""
FEWER_LAYERS = 4
"""Where memory runs out."""


def lora(task: Task) -> str:
    """Act, two LoRA updates, offloading in between, publishing and receiving weights."""
    rank = 4 if task.cpu else 32
    policy = _make(task)
    policy.add_lora(rank, vision=True)
    policy.recompute()
    trainer = _trainer(task, policy, f"policy.lora.rank={rank}")
    trained = _trained(policy)
    predicted = _predict(policy)
    decided, act_peak = _measured(task, lambda: _play(policy, 0))
    task.note(
        trained_parameters=sum(p.numel() for p in trained),
        weights_gb=sum(p.numel() * p.element_size() for p in policy.parameters()) / 1e9,
        act_seconds=decided[1],
        act_peak_gb=act_peak,
    )
    (metrics, seconds), peak = _measured(task, lambda: trainer.update([decided[0]], 0))
    task.note(update_seconds=seconds, update_peak_gb=peak, predicted_gb=predicted / 1e9, update=metrics)
    _check_gap(task, trainer, metrics)
    # Of float32 adapters two moments go, of weights in bfloat16 the master too.
    moves = sum(p.numel() * (8 if p.dtype == torch.float32 else 12) for p in trained)
    before = _allocated(task)
    offload_seconds = time_once(trainer.algorithm.offload)
    freed = before - _allocated(task)
    task.note(offload_seconds=offload_seconds, offload_freed_gb=freed / 1e9, offload_predicted_gb=moves / 1e9)
    task.require(task.cpu or freed >= 0.9 * moves, f"offloading freed {freed / 1e9:.3g} of {moves / 1e9:.3g} GB")
    began = time.perf_counter()
    weights = trainer.publish(1)
    published = time.perf_counter() - began
    assert weights.policy is not None
    task.require(
        all(bool(torch.isfinite(x).all()) for x in weights.policy.values()), "published weights are not finite"
    )
    received = time_once(lambda: load_state(policy, weights.policy or {}))
    task.note(
        publish_seconds=published,
        receive_seconds=received,
        published_gb=sum(x.numel() * x.element_size() for x in weights.policy.values()) / 1e9,
    )
    # The state comes back for the next update.
    second = trainer.update([_play(policy, 1)], 1)
    task.note(second_update=second)
    _check_gap(task, trainer, second)
    return (
        f"act {act_peak:.3g} GB, update {peak:.3g} GB (predicted {predicted / 1e9:.3g} without activations) in "
        f"{seconds:.2f} s, gap {metrics['update/log_prob_gap_mean']:.1e}, offload frees {freed / 1e9:.2f} GB, publish "
        f"{published:.2f} s"
    )


def full(task: Task) -> str:
    """An update of all weights, of the largest policy that fits: as many decoder layers as the free memory allows."""
    layers = _first_layers(task)
    while True:
        try:
            return _update_all(task, layers)
        except torch.OutOfMemoryError as error:
            task.note(out_of_memory=[*task.figures.get("out_of_memory", []), {"layers": layers, "error": str(error)}])
            if layers is None or layers <= FEWER_LAYERS:
                raise
            layers -= FEWER_LAYERS
        gc.collect()
        torch.cuda.empty_cache()


def _update_all(task: Task, layers: int | None) -> str:
    policy = _make(task, layers)
    policy.recompute()
    trainer = _trainer(task, policy)
    predicted, count = _predict(policy), sum(p.numel() for p in _trained(policy))
    rollout = _play(policy, 0)
    (metrics, seconds), peak = _measured(task, lambda: trainer.update([rollout], 0))
    task.note(
        layers=len(policy.language_model.model.layers),
        trained_parameters=count,
        update_seconds=seconds,
        update_peak_gb=peak,
        predicted_gb=predicted / 1e9,
        predicted_step_gb=(predicted + STEP_BYTES * count) / 1e9,
        update=metrics,
    )
    _check_gap(task, trainer, metrics)
    return (
        f"{count / 1e9:.3g}B parameters trained, {peak:.4g} GB (predicted {predicted / 1e9:.4g} without activations "
        f"and float32 gradients) in {seconds:.2f} s, gap {metrics['update/log_prob_gap_mean']:.1e}"
    )


def compiled(task: Task) -> str:
    """Acting through compiled blocks, against acting without."""
    policy, sampling = _make(task), Sampling()
    batch, seconds = (2, 0.0) if task.cpu else (16, 1.0)
    inputs = make_inputs(policy, batch)
    decision = policy.act(inputs, sampling, noise_key(0, np.arange(batch)))

    def rate() -> float:
        return batch / float(np.median(time_rounds(lambda: policy.act(inputs, sampling), seconds)))

    @torch.no_grad()
    def log_probs() -> torch.Tensor:
        return policy.evaluate(inputs, decision.choice, sampling).log_probs

    plain, plain_rate = log_probs(), rate()
    policy.compile_blocks()
    first = time_once(log_probs)
    gap = float((log_probs() - plain).abs().mean())
    task.note(batch=batch, first_seconds=first, gap=gap, plain_decisions_per_second=plain_rate)
    compiled_rate = rate()
    task.note(decisions_per_second=compiled_rate)
    task.require(gap <= OnPolicyConfig().log_prob_alarm, f"log-probs differ by {gap:.3g} nats in the mean")
    return (
        f"{compiled_rate:.3g} decisions/s against {plain_rate:.3g}, after {first:.1f} s; log-probs differ by {gap:.1e}"
    )


def _make(task: Task, layers: int | None = None) -> PrismaticPolicy:
    began = time.perf_counter()
    policy = make_policy(KIND, task.size, task.device, task.dtype, layers)
    synchronize()
    task.note(make_seconds=time.perf_counter() - began, parameters=sum(p.numel() for p in policy.parameters()))
    return policy


def _first_layers(task: Task) -> int | None:
    """Of the first attempt; a rehearsal takes all."""
    return None if task.cpu else _fitting_layers(task)


def _fitting_layers(task: Task) -> int:
    """How many decoder layers can be trained whole, all of them at most."""
    policy = make_policy(KIND, task.size, torch.device("meta"), task.dtype)
    layers = policy.language_model.model.layers
    layer = sum(p.numel() for p in layers[0].parameters())
    rest = sum(p.numel() for p in policy.parameters()) - layer * len(layers)
    free, _ = torch.cuda.mem_get_info(task.device)
    parameters = (free - SPARE_BYTES) / (TRAINED_BYTES + STEP_BYTES)
    task.note(free_gb=free / 1e9)
    return int(max(1, min(len(layers), (parameters - rest) // layer)))


def _trainer(task: Task, policy: Policy, *settings: str) -> Trainer:
    """PPO with the value head; vision is trained too."""
    config = read_config(
        TrainConfig,
        None,
        [
            "algorithm.epochs=1",
            "algorithm.minibatch=8",
            "algorithm.micro_batch=2",
            "algorithm.reward_level=chunk",
            "critic.warmup_iterations=0",
            "policy.freeze_vision=false",
            *settings,
        ],
    )
    training = Training(policy, None, config, task.device, _no_reference)
    return Trainer(training, shared=False)


def _no_reference() -> Policy:
    raise CheckpointError("these updates have no reference")


def _play(policy: PrismaticPolicy, version: int) -> Rollout:
    """Decisions on random frames."""

    def observe(rng: np.random.Generator, slots: int) -> PrismaticInputs:
        frames = rng.integers(0, 256, (slots, 1, *policy.config.image_size, 3), dtype=np.uint8)
        return policy.prepare(frames, [INSTRUCTIONS[slot % len(INSTRUCTIONS)] for slot in range(slots)])

    return random_rollout(policy, observe, version)


def _check_gap(task: Task, trainer: Trainer, metrics: dict[str, float]) -> None:
    task.require(np.isfinite(metrics["update/gradient_norm"]), "the gradient is not finite")
    if alarm := trainer.alarms(metrics).get("log_prob_gap"):
        task.require(False, alarm)


def _trained(policy: nn.Module) -> list[nn.Parameter]:
    return [p for p in policy.parameters() if p.requires_grad]


def _predict(policy: nn.Module) -> int:
    """Bytes of a policy in training, without activations."""
    return sum(p.numel() * (TRAINED_BYTES if p.requires_grad else p.element_size()) for p in policy.parameters())


def _measured(task: Task, work: Callable[[], T]) -> tuple[tuple[T, float], float]:
    """What work returns and its seconds; the peak memory in GB."""
    found: list[tuple[T, float]] = []

    def timed() -> None:
        began = time.perf_counter()
        result = work()
        synchronize()
        found.append((result, time.perf_counter() - began))

    peak = peak_memory(timed, task.device)
    return found[0], peak / 1e3


def _allocated(task: Task) -> int:
    """Bytes of tensors on the GPU."""
    return 0 if task.cpu else torch.cuda.memory_allocated(task.device)
