"""The loop of reinforcement learning: collect, update, report, save."""

import time
from collections.abc import Sequence
from pathlib import Path

from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.data.step import EpisodeResult
from treadle.training.run import Run
from treadle.training.samples import count_groups


def train(config: TrainConfig) -> Path:
    """Run a recipe from its base checkpoint to its report; returns the run's folder.

    The same call goes on with a run that was stopped. Ctrl-C ends the run after its iteration, saved.

    Raises:
        TreadleError: Anything that is the user's to mend.
    """
    with Run.open(config) as run:
        run.evaluate_base()
        for iteration in range(run.iteration, config.iterations):
            start = time.perf_counter()
            rollouts = collect(run, iteration)
            metrics = run.learner.update(rollouts, iteration)
            run.record(iteration, summarize(rollouts) | metrics, time.perf_counter() - start)
        run.finish()
    return run.directory


def collect(run: Run, iteration: int) -> list[Rollout]:
    """The rollouts of one update; where groups are filtered, more of them until enough groups remain or the limit of
    refills is reached.
    """
    config = run.config
    algorithm = config.algorithm
    rollouts: list[Rollout] = []
    kept = wanted = 0
    for number in range(algorithm.rounds + algorithm.filter.refills):
        if number >= algorithm.rounds and kept >= wanted:
            break
        rollouts.append(run.collector.collect(config.decisions, version=iteration))
        remaining, groups = count_groups(rollouts[-1], algorithm)
        kept += remaining
        wanted = algorithm.rounds * groups
    return rollouts


def summarize(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What happened in the rollouts of one update, as metrics. Rates over episodes are left out where none ended."""
    episodes = [episode for rollout in rollouts for episode in rollout.episodes]
    roles = {name for rollout in rollouts for name in rollout.seconds}
    metrics = {
        "rollout/episodes": float(len(episodes)),
        "rollout/control_steps": float(sum(int(rollout.valid.sum()) for rollout in rollouts)),
        **{f"time/{role}": sum(rollout.seconds.get(role, 0.0) for rollout in rollouts) for role in sorted(roles)},
    }
    if len(rollouts) > 1:
        metrics["rollout/rounds"] = float(len(rollouts))
    if episodes:
        metrics |= {
            "rollout/success": _mean(episodes, "success_once"),
            "rollout/return": _mean(episodes, "episode_return"),
            "rollout/length": _mean(episodes, "length"),
        }
    return metrics


def _mean(episodes: list[EpisodeResult], name: str) -> float:
    return sum(float(getattr(episode, name)) for episode in episodes) / len(episodes)
