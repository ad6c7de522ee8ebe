"""The loop of reinforcement learning: collect, update, average, publish, record, save."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from treadle.config.schema import TrainConfig
from treadle.errors import MemberLostError, Terminated
from treadle.runtime.build import open_run


def train(config: TrainConfig) -> Path:
    """Run a recipe from its base checkpoint to its report; returns the run's folder.

    The same call resumes a run that was stopped. The first Ctrl-C, or SIGTERM, ends the run after its iteration, and
    saves it.

    Raises:
        TreadleError: A mistake that the user can mend.
        KeyboardInterrupt: The user stopped it.
    """
    with _terminable(), open_run(config) as run:
        player, trainer, recorder = run.player, run.trainer, run.recorder
        with recorder.measuring("the base was measured"):
            run.evaluator.evaluate_base(run.base, run.version)
        with recorder.training():
            while run.version < config.iterations:
                try:
                    rollouts = player.collect(trainer.wants_more)
                    recorder.update_begins()
                    metrics = trainer.update(rollouts, run.version)
                    trainer.average()
                    player.receive(trainer.publish(run.version + 1))
                    run.version += 1
                    if run.evaluation_is_due:
                        metrics |= run.evaluate()
                    recorder.write(run.version, player.take_report(), metrics)
                    if run.save_is_due:
                        run.save()
                except MemberLostError as lost:
                    run.go_back(lost)
                if recorder.stop_asked and run.saved == run.version:
                    recorder.console.message(f"saved after iteration {run.saved}; the same command goes on from there")
                    raise Terminated if recorder.terminated else KeyboardInterrupt
        with recorder.measuring("the result was measured"):
            run.finish()
    return run.directory


@contextmanager
def _terminable() -> Generator[None, None, None]:
    """SIGTERM ends the block as Ctrl-C does, so that locks, simulators and temporary files go with it."""

    def end(*_: object) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
