"""Sharded updates for tests: the cases, and what each of three spawned ranks does with them."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gaussian_policy import GaussianInputs, GaussianPolicy
from miniature import IMAGE, INSTRUCTIONS, grouped, learning_config, make_policy, make_rollout
from rank_samples import Case, complaint, make_critic, play_cases, shards, with_loss
from treadle.data.noise import noise_key
from treadle.errors import OutputError
from treadle.policies.load import load_policy
from treadle.policies.prismatic.config import make_config
from treadle.policies.prismatic.openvla import OpenVLA, OpenVLAConfig
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.prompt import build_tokenizer
from treadle.policies.prismatic.sizes import DINOV2, SIGLIP, make_statistics
from treadle.policies.protocol import Evaluation
from treadle.policies.sampling import Sampling
from treadle.runtime.trainer import Trainer
from treadle.runtime.weights import trained_state
from treadle.training import checkpoints
from treadle.training.algorithm import Training
from treadle.training.averaging import WeightAverage
from treadle.training.checkpoints import CheckpointWriter, load_trainer
from treadle.training.on_policy.ppo import PPO
from treadle.training.optimizer import MasterAdamW
from treadle.training.ranks import ProcessRanks, Ranks
from treadle.training.sharding import ShardedRanks, shard_policy, sharded_modules, unsharded, whole
from treadle.training.shards import is_sharded

CPU = torch.device("cpu")
SIZES = {2: (5, 2), 3: (1, 4, 2)}
"""Of seven slots."""
# Of four groups, the first and the last give a gradient; with three ranks, one has nothing but the others.
SUCCESSES = [True, False, False, False, False, True, True, True, False, False, False]
SCENARIOS = [4, 4, 4, 7, 7, 9, 9, 2, 2, 2, 2]
GROUP_SIZES = {2: (7, 4), 3: (3, 4, 4)}
FIVE = (3, 4, 5, 6, 7)


def make_cases(folder: Path) -> dict[str, Case]:
    """Whole policies: float32 with a value head, and with a density of actions; bfloat16, of transformer towers."""
    torch.manual_seed(0)
    policy = make_policy(folder, chunk=2, action_dim=3)
    policy.add_value_head(2, hidden=(16,))
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.last.weight, std=0.3)
    rollouts = [make_rollout(policy, 3, 7, seed=1, encode=False), make_rollout(policy, 2, 7, seed=2, encode=False)]
    rollouts[0].reward[:, :2] *= 5
    density = make_policy(folder, chunk=2, action_dim=3, head="laplace")
    # A head that is there, and gets no gradient.
    density.add_value_head(2, hidden=(16,))
    stale = make_rollout(density, 3, 7, seed=3)
    stale.versions[:, 0] = 1
    stale.log_probs[:, 0] -= 0.5
    ppo: dict[str, Any] = {"minibatch": 10, "micro_batch": 3, "epochs": 1}
    vision: dict[str, Any] = {"freeze_vision": False}
    tower = make_transformer(folder).bfloat16()
    tower.recompute()
    moved = copy.deepcopy(tower)
    with torch.no_grad():
        moved.language_model.lm_head.weight.mul_(1.1)
    grpo: dict[str, Any] = {"kind": "grpo", "group_size": 3, "minibatch": 12, "micro_batch": 4, "epochs": 1}
    # Where nothing is clipped, nothing depends on which side of a bound rounding lands.
    wide = {"clip_low": 0.9, "clip_high": 9.0}
    return {
        "value head": Case(
            policy,
            learning_config(
                algorithm=ppo | {"entropy_coefficient": 0.1, "dual_clip": 1.5},
                optimizer={"gradient_norm": 0.5},
                policy=vision,
                critic={"warmup_iterations": 4},
            ),
            "value_head",
            rollouts,
            SIZES,
            iterations=FIVE,
        ),
        "density": Case(
            density,
            learning_config(
                algorithm=ppo
                | {"chunk_share": 0.5, "decoupled": True, "stale_weight_cap": 0.9, "target_kl": 1e-9, "epochs": 2},
                critic={"kind": "privileged", "epochs": 1},
            ),
            "privileged",
            [stale],
            SIZES,
        ),
        "bfloat16": Case(
            tower,
            learning_config(
                algorithm=grpo | wide | {"reference": {"coefficient": 0.1, "target": 0.01}},
                optimizer={"gradient_norm": 0.5},
                policy=vision,
            ),
            "none",
            [grouped(tower, SUCCESSES, SCENARIOS, encode=False)],
            GROUP_SIZES,
            iterations=FIVE,
            reference=moved,
        ),
    }


def make_transformer(folder: Path) -> OpenVLA:
    """An autoregressive policy whose towers are of transformer blocks."""
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = make_config(
        OpenVLAConfig,
        vocabulary=build_tokenizer(INSTRUCTIONS, folder),
        text=text | {"num_key_value_heads": 2, "initializer_range": 0.06},
        towers=[(DINOV2, sizes), (SIGLIP, sizes)],
        image_size=28,
        chunk=2,
        action_dim=3,
        prompt_length=64,
    )
    statistics = make_statistics("tabletop", [-1.0] * 3, [1.0] * 3, [-1.0] * 7, [1.0] * 7, [True] * 3)
    policy = OpenVLA.create(config, statistics, folder, seed=3)
    with torch.no_grad():
        policy.language_model.lm_head.weight.mul_(8)
    return policy


def make_adapted(case: Case) -> Case:
    """The same with adapters."""
    policy = copy.deepcopy(case.policy)
    torch.manual_seed(5)
    policy.add_lora(2, vision=True)
    return replace(case, policy=policy, iterations=(3, 4))


def make_resumable(case: Case) -> Case:
    """The same in bfloat16, with a value head in float32."""
    policy = copy.deepcopy(case.policy)
    for name, parameter in policy.named_parameters():
        if not name.startswith("value_head."):
            parameter.data = parameter.data.bfloat16()
    config = case.config.model_copy(
        update={
            "critic": case.config.critic.model_copy(update={"warmup_iterations": 0}),
            "optimizer": case.config.optimizer.model_copy(update={"average": 0.5, "learning_rate": 1e-2}),
        }
    )
    return replace(case, policy=policy, config=config)


class Run:
    """A trainer of a case on some ranks, which can go on from a checkpoint."""

    def __init__(self, case: Case, ranks: Ranks, checkpoint: Path | None = None, **settings: Any) -> None:
        self.ranks = ranks
        policy = copy.deepcopy(case.policy)
        if checkpoint is not None:
            loaded = load_policy(checkpoint / "policy", device="cpu")
            assert isinstance(loaded, PrismaticPolicy)
            policy = loaded
        critic = make_critic(case.critic)
        if isinstance(ranks, ShardedRanks):
            shard_policy(policy, ranks, CPU)
        placement = case.config.placement.model_copy(update={"offload": settings.pop("offload", False)})
        saves = {"save_in_background": settings.pop("background", False), "placement": placement}
        config = case.config.model_copy(update=saves)
        self.trainer = Trainer(Training(policy, critic, config, CPU, lambda: policy, ranks), shared=False)
        if checkpoint is not None:
            self.trainer.load_state_dict(load_trainer(checkpoint))
        self.rollouts = shards(case.rollouts, case.sizes[ranks.count])[ranks.rank] if ranks.count > 1 else case.rollouts

    def update(self, version: int) -> None:
        """One update, which goes into the average."""
        rollouts = [replace(x, versions=torch.full_like(x.versions, version)) for x in self.rollouts]
        self.trainer.update(rollouts, version)
        self.trainer.average()

    def held(self) -> dict[str, list[Tensor]]:
        """All that an update changes, whole: parameters, masters and moments, averages."""
        ppo = self.trainer.algorithm
        assert isinstance(ppo, PPO)
        given = [p for group in (ppo._policy_parameters, ppo._critic_parameters) for p in group]

        def join(own: Tensor, parameter: Tensor) -> Tensor:
            return torch.cat(self.ranks.gather(own)) if is_sharded(parameter) else own.clone()

        states = [ppo.optimizer.state[own] for group in ppo.optimizer.param_groups for own in group["params"]]
        moments = [
            join(state[name], parameter)
            for state, parameter in zip(states, given, strict=True)
            for name in ("exp_avg", "exp_avg_sq")
            if state
        ]
        average: WeightAverage = self.trainer._average
        return {
            "parameters": [whole(p, self.ranks).clone() for p in given],
            "masters": [join(own, parameter) for parameter, own in ppo.optimizer._masters()],
            "moments": moments,
            "average": [join(own, p) for own, p in zip(average._average, average._parameters, strict=True)],
        }


def begin(case: Case, ranks: Ranks, folder: Path, **settings: Any) -> dict[str, Any]:
    """Two updates, a checkpoint, and the update after it."""
    run = Run(case, ranks, **settings)
    run.update(3)
    run.update(4)
    run.trainer.save(folder, 5, {"other": [ranks.rank]})
    saved = run.held()
    run.update(5)
    ppo = run.trainer.algorithm
    assert isinstance(ppo, PPO)
    found: dict[str, Any] = {
        "offloaded": ppo.optimizer.offloaded,
        "saved": saved,
        "held": run.held(),
        "published": trained_state(run.trainer.policy, ranks),
    }
    run.trainer.swap_in()
    run.trainer.export(folder / "policy")
    return found


def resume(case: Case, ranks: Ranks, folder: Path) -> dict[str, list[Tensor]]:
    """The update after the checkpoint."""
    run = Run(case, ranks, folder / "iteration-000005")
    run.update(5)
    return run.held()


def plain_update(case: Case, ranks: Ranks) -> dict[str, Tensor]:
    """A step of an algorithm that knows no shards: it sums gradients, clips them by torch, and steps."""
    policy, rollout = copy.deepcopy(case.policy), case.rollouts[0]
    if isinstance(ranks, ShardedRanks):
        rollout = shards([rollout], case.sizes[ranks.count])[ranks.rank][0]
        shard_policy(policy, ranks, CPU)
    parameters = policy.freeze(vision=False)["policy"]
    optimizer = MasterAdamW(parameters, lr=1e-3)
    chosen = rollout.valid.any(-1)
    inputs, choices = rollout.inputs.take(chosen), rollout.choices[chosen]
    total = int(ranks.sum(torch.tensor(len(choices))))
    # As many steps on all ranks, as FSDP2 asks.
    for _ in range(3):
        (-policy.evaluate(inputs, choices, Sampling()).log_probs.sum() / total).backward()
        ranks.sum_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return {name: whole(p, ranks).clone() for name, p in policy.named_parameters()}


class Scaled(GaussianPolicy):
    """A policy that names no units, and has a scalar, which stays whole on each rank."""

    def __init__(self) -> None:
        super().__init__(proprioception_dim=4, action_dim=3)
        self.gain = nn.Parameter(torch.tensor(0.5))

    def evaluate(self, inputs: GaussianInputs, choice: Tensor, sampling: Sampling) -> Evaluation:
        found = super().evaluate(inputs, choice, sampling)
        return Evaluation(found.log_probs * self.gain, found.entropy, None)


def undivided_update(ranks: Ranks) -> dict[str, Tensor]:
    """Two steps of such a policy, on seven samples of all ranks."""
    torch.manual_seed(11)
    policy = Scaled()
    inputs, choices = GaussianInputs(torch.randn(7, 7)), torch.randn(7, 2, 3)
    if isinstance(ranks, ShardedRanks):
        end = sum(SIZES[ranks.count][: ranks.rank + 1])
        rows = torch.arange(end - SIZES[ranks.count][ranks.rank], end)
        inputs, choices = inputs.take(rows), choices[rows]
        shard_policy(policy, ranks, CPU)
    parameters = policy.freeze()["policy"]
    optimizer = MasterAdamW(parameters, lr=1e-2)
    for _ in range(2):
        found = policy.evaluate(inputs, choices, Sampling())
        (-(found.log_probs + found.entropy).sum()).backward()
        ranks.sum_gradients(parameters)
        ranks.clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {name: whole(p, ranks).clone() for name, p in policy.named_parameters()}


def act(policy: PrismaticPolicy, seed: int) -> Tensor:
    """Log-probs of a decision."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (2, 1, IMAGE, IMAGE, 3), dtype=np.uint8)
    inputs = policy.prepare(frames, INSTRUCTIONS, rng.uniform(-1, 1, (2, 7)).astype(np.float32))
    return policy.act(policy.encode(inputs), Sampling(), noise_key(seed, np.arange(2))).log_probs


def play_alone(case: Case, ranks: ShardedRanks) -> dict[str, Any]:
    """Each rank decides another number of times while the policy is gathered, and once together with the others."""
    policy = copy.deepcopy(case.policy)
    shard_policy(policy, ranks, CPU)
    before = [tuple(p.to_local().shape) for p in policy.parameters()]  # pyright: ignore[reportAttributeAccessIssue]
    with unsharded(policy):
        alone = [act(policy, seed) for seed in range(ranks.rank + 1)]
    after = [tuple(p.to_local().shape) for p in policy.parameters()]  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "alone": alone,
        "together": act(policy, 0),
        "again": play_again(policy),
        "resharded": before == after,
        "units": len(list(sharded_modules(policy))),
        "rows": sum(shape[0] for shape in after),
    }


def play_again(policy: PrismaticPolicy) -> Tensor:
    """Weights are gathered twice in a row."""
    with unsharded(policy):
        act(policy, 1)
    with unsharded(policy):
        return act(policy, 2)


def unwritable(case: Case, ranks: ShardedRanks, folder: Path, background: bool) -> str:
    """What a rank says of a checkpoint for which rank 1 has no room."""
    run = Run(case, ranks)
    run.update(3)
    writer = CheckpointWriter(ranks, background=background)
    written = checkpoints.write_part

    def fail(path: Path, parts: Any) -> None:
        if ranks.rank == 1:
            raise OSError(28, "No space left on device")
        written(path, parts)

    checkpoints.write_part = fail
    try:
        state = {"algorithm": run.trainer.algorithm.state_dict()}
        try:
            writer.save(folder, 1, run.trainer.policy, state)
            assert background
        except OutputError as error:
            return str(error)
        return complaint(writer.finish)
    finally:
        checkpoints.write_part = written


def absence(case: Case, rank: int) -> str:
    """What a rank says whose neighbour in a forward pass does not come."""
    ranks = ShardedRanks(2.0)
    policy = copy.deepcopy(case.policy)
    shard_policy(policy, ranks, CPU)
    dist.barrier()
    message = complaint(lambda: act(policy, 0)) if rank < 2 else ""
    dist.barrier()
    return message


def run_shards(rank: int, count: int, folder: Path) -> None:
    """A spawned rank; it writes what it finds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    cases: dict[str, Case] = torch.load(folder / "cases.pt", weights_only=False)
    everyone, some = ShardedRanks(120.0), dist.new_group([0, 1], backend="gloo")
    once = {name: replace(case, iterations=case.iterations[-1:]) for name, case in cases.items()}
    found: dict[str, Any] = {"all": play_cases(once, everyone, count)}
    first, resumable = cases["value head"], make_resumable(cases["value head"])
    if rank < 2:
        assert isinstance(some, dist.ProcessGroup)
        two, replicas = ShardedRanks(120.0, some), ProcessRanks(120.0, some)
        found["two"] = play_cases({name: cases[name] for name in ("value head", "bfloat16")}, two, 2)
        found["plain"] = plain_update(first, two)
        found["adapters"] = play_cases({"adapters": make_adapted(first)}, replicas, 2)["adapters"]
        found["begun"] = begin(resumable, two, folder / "shards", background=True, offload=True)
        found["same"] = resume(resumable, two, folder / "shards")
        found["replicas"] = resume(resumable, replicas, folder / "shards")
        found["from one"] = resume(resumable, two, folder / "one")
    dist.barrier()
    found["three"] = resume(resumable, everyone, folder / "shards")
    found["undivided"] = undivided_update(everyone)
    found["play"] = play_alone(first, everyone)
    found["gradient"] = complaint(lambda: play_cases({"": with_loss(first, "steep")}, everyone, count))
    found["loss"] = complaint(lambda: play_cases({"": with_loss(first, "spoilt")}, everyone, count))
    found["full"] = [unwritable(first, everyone, folder / "full", background) for background in (False, True)]
    found["absence"] = absence(first, rank)
    torch.save(found, folder / f"found-{rank}.pt")
    dist.destroy_process_group()
