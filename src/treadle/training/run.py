"""One run: its folder, its parts, what it writes and how it resumes."""

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from treadle.config.loading import resolve_checkpoint
from treadle.config.run_directory import create_run_directory
from treadle.config.schema import TrainConfig
from treadle.data.span import Span
from treadle.devices import choose_device, prepare_cpu
from treadle.errors import ConfigError
from treadle.evaluation.evaluate import evaluate_policy, film, manifest
from treadle.files import read_json, to_json, write_atomically
from treadle.policies.critic import Critic, NoCritic, PrivilegedCritic, ValueHeadCritic
from treadle.policies.load import load_configured
from treadle.policies.protocol import Policy, Sampling
from treadle.reporting.console import RunConsole
from treadle.reporting.log import RunLog
from treadle.reporting.machine import peak_rss_mb, versions, write_machine
from treadle.reporting.metrics import METRICS_FILE, MetricsWriter
from treadle.reporting.report import write_report
from treadle.reporting.summary import RunSummary, suite_results, write_summary
from treadle.reporting.timeline import TraceWriter, idle_shares
from treadle.reporting.video import write_video
from treadle.rollout.build import plan_lanes
from treadle.rollout.collector import Collector
from treadle.rollout.lanes import Lanes, check_dimensions
from treadle.simulators.build import build_simulator
from treadle.training.averaging import WeightAverage
from treadle.training.checkpoints import list_checkpoints, load_trainer, save_checkpoint
from treadle.training.finetuning import load_trainable
from treadle.training.health import alarms
from treadle.training.learner import Learner

VIDEO_SIZE = 224
"""Pixels of a filmed frame's side."""


class Run:
    """A run's folder and everything that the loop calls; open it with `Run.open`."""

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        base: Path,
        policy: Policy,
        lanes: Lanes,
        device: torch.device,
    ) -> None:
        self.config = config
        self.directory = directory
        self.base = base
        """The checkpoint that training starts from."""
        self.policy = policy
        self.iteration = 0
        """Iterations done."""
        self._lanes = lanes
        self._restarts = 0
        critic = build_critic(config, policy, lanes.spec.state_dim, device)
        self.collector = Collector(
            lanes,
            policy,
            Sampling(**config.policy.sampling.model_dump()),
            critic,
            encode=config.policy.freeze_vision,
            batch=config.collection.batch,
            cores=config.collection.generate_cores,
        )
        self.learner = Learner(policy, critic, config, device, load_reference(config, base, device))
        self.average = WeightAverage(self.learner.trained, config.optimizer.average)
        self._trace = TraceWriter(directory, config.collection.trace_iterations)
        self._control_steps = 0
        self._elapsed = 0.0
        self._training = self._stopping = False
        self._exit = ExitStack()

    @classmethod
    def open(cls, config: TrainConfig) -> Self:
        """Make or resume the run of a config: load the policy, build the simulator and the learner."""
        prepare_cpu(config.torch_threads)
        device = choose_device(config.device)
        base = resolve_checkpoint(config.policy.checkpoint)
        checkpoints = list_checkpoints(config.output / config.name / "checkpoints")
        state = load_trainer(checkpoints[-1]) if checkpoints else None
        torch.manual_seed(config.seed)
        start = checkpoints[-1] / "policy" if checkpoints else base
        policy = load_trainable(start, config.policy, device, freeze_vision=config.policy.freeze_vision)
        with ExitStack() as opened:
            lanes = opened.enter_context(open_lanes(config, policy))
            # Only now, so that a checkpoint or simulator that cannot be used leaves nothing behind.
            directory = create_run_directory(config)
            run = cls(config, directory, base, policy, lanes, device)
            if state is not None:
                run._restore(state)
            write_machine(directory, str(device))
            run._exit = opened.pop_all()
        return run

    def __enter__(self) -> Self:
        self._console = self._exit.enter_context(RunConsole(self.config.name, self.config.iterations))
        self._exit.enter_context(RunLog(self.directory, self._console.message))
        # Also without a checkpoint: a run that was killed before its first one left lines that are written again.
        resumed = self.iteration if (self.directory / METRICS_FILE).exists() else None
        self._writer = self._exit.enter_context(MetricsWriter(self.directory, resumed))
        previous = signal.signal(signal.SIGINT, self._stop)
        self._exit.callback(signal.signal, signal.SIGINT, previous)
        if self.iteration:
            self._console.message(f"resuming after iteration {self.iteration}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def _stop(self, signal_number: int, frame: FrameType | None) -> None:
        """On the first Ctrl-C finish the iteration and save, on the second stop at once."""
        if self._stopping or not self._training:
            raise KeyboardInterrupt
        self._stopping = True
        self._console.message("stopping after this iteration; press Ctrl-C again to stop at once, without saving")

    def evaluate_base(self) -> None:
        """Measure and film the policy before training, once."""
        if not (self.directory / "evaluation" / "base.json").exists():
            self._evaluate("base", self.base)
        self._training = True

    def record(self, iteration: int, metrics: dict[str, float], seconds: float) -> None:
        """Write down one iteration, and save where it is time to or the user asked to stop (KeyboardInterrupt)."""
        self.iteration = iteration + 1
        self.average.update()
        self._elapsed += seconds
        self._control_steps += int(metrics["rollout/control_steps"])
        restarts, self._restarts = self._lanes.restarts - self._restarts, self._lanes.restarts
        metrics = {
            "iteration": self.iteration,
            "seconds": self._elapsed,
            **metrics,
            "rollout/restarts": float(restarts),
            **idle_shares(metrics),
            "time/iteration": seconds,
            "speed/control_steps_per_second": metrics["rollout/control_steps"] / seconds,
        }
        self._writer.write(metrics)
        for warning in alarms(metrics, self.config.algorithm.log_prob_alarm):
            self._console.message(f"warning: iteration {self.iteration}: {warning}")
        self._console.iteration(metrics)
        self._trace_iteration()
        every = self.config.save_every
        if self._stopping or (every and self.iteration % every == 0):
            self.save()
        if self._stopping:
            self._console.message(f"saved after iteration {self.iteration}; the same command goes on from there")
            raise KeyboardInterrupt

    def _trace_iteration(self) -> None:
        """Keep when each role was busy; what follows the last rollout is training."""
        spans = self.collector.take_spans()
        collected = max(span.ended for span in spans)
        self._trace.write(self.iteration, [*spans, Span("train", 0, (), collected, time.perf_counter())])

    def save(self) -> None:
        """Checkpoint the run as it is."""
        save_checkpoint(self.directory / "checkpoints", self.iteration, self.policy, self._state())

    def finish(self) -> None:
        """Save the policy, measure and film it, and write summary and report."""
        self._training = False
        self.save()
        self.average.swap_in()
        final = self.directory / "policy"
        self.policy.save(final)
        self._evaluate("final", final)
        base, trained = (read_json(self.directory / "evaluation" / f"{name}.json") for name in ("base", "final"))
        summary = RunSummary(
            base=suite_results(base),
            final=suite_results(trained),
            seconds={"evaluate_base": base["seconds"], "train": self._elapsed, "evaluate_final": trained["seconds"]},
            peak_rss_mb=peak_rss_mb(),
            env_steps=self._control_steps,
            control_steps_per_second=self._control_steps / self._elapsed,
            versions=versions(),
            seed=self.config.seed,
        )
        write_summary(self.directory, summary)
        self._console.stage("writing the report")
        self._console.finish(summary, write_report(self.directory))

    def _evaluate(self, name: str, checkpoint: Path) -> None:
        start = time.perf_counter()
        config = self.config
        simulator = build_simulator(config.simulator, slots=min(config.evaluation.slots, config.evaluation.episodes))
        self.policy.eval()
        stage = ""

        def progress(suite: str, done: int, total: int) -> None:
            nonlocal stage
            if suite != stage:
                self._console.stage(f"evaluating {name}: {suite}")
            stage = suite
            self._console.progress(done, total)

        try:
            report = evaluate_policy(
                self.policy, simulator, config.evaluation_horizon, config.evaluation, progress=progress
            )
        finally:
            simulator.close()
        report["manifest"] = manifest(checkpoint, config.policy, config.simulator, config.evaluation)
        self._film(name)
        report["seconds"] = time.perf_counter() - start
        (self.directory / "evaluation").mkdir(exist_ok=True)
        write_atomically(self.directory / "evaluation" / f"{name}.json", to_json(report))

    def _film(self, name: str) -> None:
        """Film the first in-distribution scenarios, the same before and after training."""
        count = self.config.evaluation.videos
        if not count:
            return
        self._console.stage(f"filming {name}")
        simulator = build_simulator(self.config.simulator, slots=count)
        try:
            scenarios = simulator.scenarios("train", "evaluation")[:count]
            sampling = Sampling(**self.config.evaluation.sampling.model_dump())
            films = film(self.policy, simulator, scenarios, self.config.evaluation_horizon, sampling, VIDEO_SIZE)
        finally:
            simulator.close()
        folder = self.directory / "videos"
        folder.mkdir(exist_ok=True)
        index = folder / "videos.json"
        entries: list[dict[str, Any]] = read_json(index) if index.exists() else [{"index": i} for i in range(count)]
        for i, (result, frames) in enumerate(films):
            write_video(folder / f"{name}-{i}.mp4", frames, simulator.spec.control_hz)
            entries[i] |= {"scenario": result.scenario.id, "instruction": result.scenario.instruction}
            entries[i][name] = {"file": f"{name}-{i}.mp4", "success": result.success_once, "length": result.length}
        write_atomically(index, to_json(entries))

    def _state(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "average": self.average.state_dict(),
            "collector": self.collector.state_dict(),
            "elapsed": self._elapsed,
            "control_steps": self._control_steps,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self._elapsed = state["elapsed"]
        self._control_steps = state["control_steps"]
        self.learner.load_state_dict(state["learner"])
        self.average.load_state_dict(state["average"])
        self.collector.load_state_dict(state["collector"])


def check_decisions(config: TrainConfig, chunk: int) -> None:
    """Without partial reset, a rollout must hold whole episodes. Raises ConfigError."""
    wanted = -(-config.simulator.horizon // chunk)
    if not config.algorithm.partial_reset and config.decisions < wanted:
        raise ConfigError(
            f"decisions {config.decisions} with algorithm.partial_reset false: a rollout holds whole episodes, of "
            f"simulator.horizon {config.simulator.horizon} control steps at {chunk} per decision; use "
            f"decisions={wanted}"
        )


def load_reference(config: TrainConfig, base: Path, device: torch.device) -> Policy | None:
    """The frozen policy that the run began with, where the loss keeps near it."""
    if not config.algorithm.reference.coefficient:
        return None
    return load_configured(base, config.policy, device=str(device)).eval()


def open_lanes(config: TrainConfig, policy: Policy) -> Lanes:
    """The lanes that a config asks for, their workers started.

    Raises:
        TreadleError: A simulator that cannot be built, cores that are not there, or actions that do not fit.
    """
    algorithm = config.algorithm
    check_decisions(config, policy.chunk)
    stream = {
        "seed": config.seed,
        "group_size": algorithm.group_size,
        "partial_reset": algorithm.partial_reset,
    }
    keep_final = "ended" if algorithm.bootstrap == "always" else "truncated"
    plan = plan_lanes(
        config.simulator,
        config.collection,
        stream,
        keep_final if config.has_critic else "none",
        accelerated=policy.device.type != "cpu",
    )
    with ExitStack() as opened:
        lanes = opened.enter_context(Lanes(plan, policy.chunk))
        check_dimensions(lanes.spec, policy.action_dim)
        opened.pop_all()
    return lanes


def build_critic(config: TrainConfig, policy: Policy, state_dim: int, device: torch.device) -> Critic:
    """The critic that a config asks for, or its stand-in.

    Raises:
        ConfigError: A privileged critic on a simulator without privileged state.
    """
    if not config.has_critic:
        return NoCritic()
    outputs = policy.chunk if config.algorithm.values_per_action else 1
    if config.critic.kind == "value_head":
        if policy.value_outputs != outputs:
            policy.add_value_head(outputs)
        return ValueHeadCritic(policy)
    if state_dim == 0:
        raise ConfigError(
            f"critic.kind 'privileged': the simulator {config.simulator.name!r} offers no privileged state; "
            "use critic.kind=value_head"
        )
    return PrivilegedCritic(state_dim, outputs, config.critic.width).to(device)
