"""The recorder: it shows and writes each iteration of a run, and knows whether the user asked to stop."""

import logging
import math
import signal
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from treadle.config.schema import TrainConfig
from treadle.data.span import Span
from treadle.data.step import EpisodeResult
from treadle.errors import Terminated
from treadle.reporting.console import RunConsole
from treadle.reporting.folder import read_evaluation
from treadle.reporting.log import RunLog
from treadle.reporting.machine import versions
from treadle.reporting.metrics import METRICS_FILE, MetricsWriter
from treadle.reporting.report import write_report
from treadle.reporting.summary import RunSummary, suite_results, write_summary
from treadle.reporting.timeline import TraceWriter, idle_shares
from treadle.runtime.facts import EpisodeFacts
from treadle.runtime.player import PlayReport

if TYPE_CHECKING:
    from treadle.reporting.wandb import WandbWriter

_log = logging.getLogger(__name__)

SAID_AGAIN = 50
"""Iterations after which a warning is repeated whose sign is still there."""
BUDGET = 30.0
"""Seconds between SIGTERM and the end: what schedulers give before they kill."""


class Recorder:
    """Console, metrics, timeline, warnings, summary and report of one run. A context manager.

    Args:
        config: the run's settings.
        directory: its folder.
        alarms: from an iteration's metrics, and facts of its episodes, to warnings that a person should read, by name.
        console: what a person watches.
    """

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        alarms: Callable[[dict[str, float]], Mapping[str, str]],
        console: RunConsole,
    ) -> None:
        self.directory = directory
        self.console = console
        self.stop_asked = False
        """The user or the system asked to stop after the present iteration."""
        self.terminated = False
        """It was the system."""
        self.config = config
        self._alarms = alarms
        self._facts = EpisodeFacts(directory)
        self._warned: dict[str, int] = {}
        """The iteration in which each warning was last said."""
        self._trace = TraceWriter(directory, config.collection.trace_iterations)
        self._iteration = 0
        self._control_steps = 0
        self._elapsed = 0.0
        self._began = self._update_began = time.perf_counter()
        self._wandb: WandbWriter | None = None
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        self._exit.enter_context(self.console)
        self._exit.enter_context(RunLog(self.directory, self.console.message))
        # Also without a checkpoint: a run that was killed before its first one left lines, which are written again.
        resumed = self._iteration if (self.directory / METRICS_FILE).exists() else None
        self._writer = self._exit.enter_context(MetricsWriter(self.directory, resumed))
        self.console.message(f"curves: tensorboard --logdir {self.directory / 'tensorboard'}")
        if self.config.wandb:
            from treadle.reporting.wandb import WandbWriter

            self._wandb = self._exit.enter_context(WandbWriter(self.directory, self.config.model_dump(mode="json")))
            self.console.message(f"curves: {self._wandb.place}")
        if self._iteration:
            self.console.message(f"resuming after iteration {self._iteration}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    @contextmanager
    def training(self) -> Generator[None, None, None]:
        """While the block runs, the first Ctrl-C asks to stop after the iteration, and the second stops at once.
        SIGTERM asks likewise, and stops at once after `BUDGET` seconds.
        """
        handlers = {signal.SIGINT: self._stop, signal.SIGTERM: self._stop, signal.SIGALRM: self._give_up}
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        self._began = time.perf_counter()
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def measuring(self, what: str) -> Generator[None, None, None]:
        """While the block runs, Ctrl-C and SIGTERM say what was stopped."""
        try:
            yield
        except KeyboardInterrupt:
            self.console.message(f"stopped while {what}; the same command goes on from what is saved")
            raise

    @contextmanager
    def pausing(self) -> Generator[None, None, None]:
        """What the block takes is not the iteration's time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._began += seconds
            self._update_began += seconds

    def update_begins(self) -> None:
        """All rollouts of the next update are there."""
        self._update_began = time.perf_counter()

    def write(self, iteration: int, played: PlayReport, metrics: Mapping[str, float]) -> None:
        """Write down an iteration: what was played, and the metrics of its update."""
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        summary = summarize(played)
        self._iteration = iteration
        self._elapsed += seconds
        self._control_steps += int(summary["rollout/control_steps"])
        row = {
            "iteration": iteration,
            "seconds": self._elapsed,
            **summary,
            **metrics,
            "rollout/restarts": float(played.restarts),
            **idle_shares(summary, seconds, now - self._update_began),
            "time/iteration": seconds,
            "speed/control_steps_per_second": summary["rollout/control_steps"] / seconds,
        }
        self._writer.write(row)
        if self._wandb is not None:
            self._wandb.write(row)
        self._warn(iteration, self._alarms(row | self._facts.of(iteration, played.episodes)))
        self.console.iteration(row)
        self._trace.write(iteration, [*played.spans, Span("train", 0, (), self._update_began, now)])

    def _warn(self, iteration: int, warnings: Mapping[str, str]) -> None:
        """Show warnings and keep them in `run.log`; one that was said lately is not repeated."""
        for name, warning in warnings.items():
            if name not in self._warned or iteration - self._warned[name] >= SAID_AGAIN:
                self._warned[name] = iteration
                _log.warning("iteration %d: %s", iteration, warning)

    def go_back(self, state: dict[str, Any], iteration: int) -> None:
        """Forget what came after an iteration; it is done again."""
        self.load_state_dict(state, iteration)
        self._writer.close()
        self._writer = self._exit.enter_context(MetricsWriter(self.directory, iteration))
        self._began = time.perf_counter()

    def report(self) -> Path:
        """Write the report of what is there, for whoever watches the run."""
        return write_report(self.directory)

    def finish(self, peak_rss_mb: float, peak_gpu_mb: float) -> None:
        """Write summary and report, from the evaluations in the run's folder; the run held so much memory at most."""
        base, trained = (read_evaluation(self.directory, name) or {} for name in ("base", "final"))
        summary = RunSummary(
            base=suite_results(base),
            final=suite_results(trained),
            seconds={"evaluate_base": base["seconds"], "train": self._elapsed, "evaluate_final": trained["seconds"]},
            peak_rss_mb=peak_rss_mb,
            peak_gpu_mb=peak_gpu_mb,
            env_steps=self._control_steps,
            control_steps_per_second=self._control_steps / self._elapsed,
            versions=versions(),
            seed=self.config.seed,
        )
        write_summary(self.directory, summary)
        self.console.stage("writing the report")
        self.console.finish(summary, self.report())

    def state_dict(self) -> dict[str, Any]:
        """The counts so far, as plain data."""
        return {"elapsed": self._elapsed, "control_steps": self._control_steps}

    def load_state_dict(self, state: dict[str, Any], iteration: int) -> None:
        """Go on from `state`, after so many iterations; before the recorder is entered."""
        self._iteration = iteration
        self._elapsed = state["elapsed"]
        self._control_steps = state["control_steps"]

    def _stop(self, signal_number: int, frame: FrameType | None) -> None:
        if self.stop_asked:
            raise KeyboardInterrupt
        self.stop_asked = True
        if signal_number == signal.SIGTERM:
            self.terminated = True
            signal.setitimer(signal.ITIMER_REAL, BUDGET)
            self.console.message(f"SIGTERM: stopping after this iteration, or in {BUDGET:g} s at the latest")
        else:
            self.console.message("stopping after this iteration; press Ctrl-C again to stop at once, without saving")

    def _give_up(self, signal_number: int, frame: FrameType | None) -> None:
        self.console.message(f"the iteration took more than {BUDGET:g} s; the last checkpoint is whole")
        raise Terminated


def summarize(played: PlayReport) -> dict[str, float]:
    """Metrics of what was played for one update. Rates over episodes are left out if no episode ended."""
    metrics = {
        "rollout/episodes": float(len(played.episodes)),
        "rollout/control_steps": float(played.control_steps),
        **{f"time/{role}": seconds for role, seconds in played.seconds.items()},
    }
    if played.rollouts > 1:
        metrics["rollout/rounds"] = float(played.rollouts)
    if played.episodes:
        metrics |= {
            "rollout/success": _mean(played.episodes, "success_once"),
            "rollout/return": _mean(played.episodes, "episode_return"),
            "rollout/length": _mean(played.episodes, "length"),
        }
    return metrics


def _mean(episodes: list[EpisodeResult], name: str) -> float:
    # Rounded once, so that the order of episodes, and so the number of players, does not matter.
    return math.fsum(float(getattr(episode, name)) for episode in episodes) / len(episodes)
