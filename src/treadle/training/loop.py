"""The loop of reinforcement learning: collect, update, report, save."""

import time
from pathlib import Path

from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.data.step import EpisodeResult
from treadle.training.run import Run


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
            rollout = run.collector.collect(config.decisions, version=iteration)
            metrics = run.learner.update(rollout, iteration)
            run.record(iteration, summarize(rollout) | metrics, time.perf_counter() - start)
        run.finish()
    return run.directory


def summarize(rollout: Rollout) -> dict[str, float]:
    """What happened in a rollout, as metrics. Rates over episodes are left out where none ended."""
    episodes = rollout.episodes
    metrics = {
        "rollout/episodes": float(len(episodes)),
        "rollout/control_steps": float(rollout.valid.sum()),
        **{f"time/{name}": seconds for name, seconds in rollout.seconds.items()},
    }
    if episodes:
        metrics |= {
            "rollout/success": _mean(episodes, "success_once"),
            "rollout/return": _mean(episodes, "episode_return"),
            "rollout/length": _mean(episodes, "length"),
        }
    return metrics


def _mean(episodes: list[EpisodeResult], name: str) -> float:
    return sum(float(getattr(episode, name)) for episode in episodes) / len(episodes)
