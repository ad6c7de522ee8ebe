"""The loop of reinforcement learning: collect, update, average, publish, record, save."""

from pathlib import Path

from treadle.config.schema import TrainConfig
from treadle.runtime.build import open_run


def train(config: TrainConfig) -> Path:
    """Run a recipe from its base checkpoint to its report; returns the run's folder.

    The same call resumes a run that was stopped. The first Ctrl-C ends the run after its iteration, and saves it.

    Raises:
        TreadleError: A mistake that the user can mend.
        KeyboardInterrupt: The user stopped it.
    """
    with open_run(config) as run:
        player, trainer, recorder = run.player, run.trainer, run.recorder
        run.evaluator.evaluate_once("base", run.base)
        saved = run.version
        with recorder.training():
            for version in range(run.version, config.iterations):
                rollouts = player.collect(trainer.wants_more)
                metrics = trainer.update(rollouts, version)
                trainer.average()
                player.receive(trainer.publish(version + 1))
                recorder.write(version + 1, player.take_report(), metrics)
                if recorder.stop_asked or (config.save_every and (version + 1) % config.save_every == 0):
                    run.save(version + 1)
                    saved = version + 1
                if recorder.stop_asked:
                    recorder.console.message(f"saved after iteration {saved}; the same command goes on from there")
                    raise KeyboardInterrupt
        if saved < config.iterations:
            run.save(config.iterations)
        trainer.finish(run.directory / "policy")
        run.evaluator.evaluate("final", run.directory / "policy")
        recorder.finish()
    return run.directory
