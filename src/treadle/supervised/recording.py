"""Rollouts of a policy as a data set: what it did well can be imitated, by itself or by another."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from treadle.config.dataset import RecordConfig
from treadle.data.demonstration_writer import check_free
from treadle.data.rerun_writer import RerunWriter, rerun_package
from treadle.data.scenario import Split
from treadle.data.step import EpisodeResult
from treadle.devices import prepare_cpu
from treadle.errors import ConfigError, OutputError
from treadle.files import cannot_write, replace_directory
from treadle.policies.load import load_configured
from treadle.policies.sampling import Sampling
from treadle.rollout.actor import Actor
from treadle.rollout.sources import ScenarioList
from treadle.supervised.tracks import ChunkPlayer, Moment, open_writer, play_tracks, show_track, write_track
from treadle.workers.crew import Crew, check_dimensions, require_suite
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session
from treadle.workers.plan import plan_crew


@dataclass(frozen=True, slots=True)
class Choice:
    """Which episodes are played, and which of them are kept."""

    suite: str = "train"
    split: Split = "train"
    first: int = 0
    """The first scenario of the enumeration."""
    episodes: int = 100
    success_only: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """What came of it."""

    played: int
    successes: int
    episodes: int
    """Written."""
    frames: int
    """Written."""

    def report(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def record_rollouts(
    checkpoint: Path,
    config: RecordConfig,
    choice: Choice,
    directory: Path,
    device: str,
    progress: Callable[[int, int], None],
    rerun: Path | None = None,
) -> Recorded:
    """Let a policy play scenarios, and write its episodes as a LeRobot data set, in the order of their scenarios; with
    `rerun` also a file of each for Rerun's viewer, into that folder.

    The noise of a decision belongs to its scenario, so the same call writes the same data set.

    Raises:
        CheckpointError: The directory cannot be loaded.
        ConfigError: A simulator that does not fit the policy, or whose actions cannot be played one by one.
        OutputError: The directory cannot be written, or no episode was kept.
    """
    check_free(directory)
    if rerun is not None:
        rerun_package()
        check_free(rerun)
    prepare_cpu(0)
    policy = load_configured(checkpoint, config.policy, device=device)
    slots = min(config.simulator.slots, choice.episodes)
    plan = plan_crew(config.simulator, config.collection, slots=slots, accelerated=policy.device.type != "cpu")
    with Crew(plan) as crew:
        check_dimensions(crew, policy.action_dim)
        spec = crew.spec
        if spec.actions_together > 1:
            raise ConfigError(
                f"simulator {spec.name!r} plays {spec.actions_together} actions as one motion, so nothing is seen "
                "between them; record with a setting of the simulator that plays them one by one"
            )
        require_suite(crew, "--suite", choice.suite)
        place = (choice.suite, choice.split)
        scenarios = crew.scenarios(*place, choice.first, choice.first + choice.episodes)
        if not scenarios:
            raise ConfigError(
                f"--first {choice.first}: suite {choice.suite!r} has {crew.count(*place)} scenarios in split "
                f"{choice.split!r}"
            )
        source = ScenarioList(place, range(choice.first, choice.first + len(scenarios)), crew.rows, slots)
        horizon = config.simulator.horizon
        lanes = Lanes(crew, Session(horizon), source, chunk=1, decision=policy.chunk)
        actor = Actor(policy.eval(), Sampling(**config.sampling.model_dump()))
        grippers = np.array([dimension.kind == "gripper" for dimension in spec.actions])
        viewed = (
            None
            if rerun is None
            else (RerunWriter(rerun, spec.cameras, [dimension.name for dimension in spec.actions], spec.control_hz))
        )
        played, written, frames = list[EpisodeResult](), 0, 0
        # Whole or not at all: a folder that is cut short has another name.
        unfinished = directory.with_name(f".{directory.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with open_writer(unfinished, spec) as writer:

            def ended(result: EpisodeResult, track: list[Moment]) -> None:
                nonlocal written, frames
                played.append(result)
                if result.success_once or not choice.success_only:
                    # A simulator takes what lies beyond open or closed as that; a reader of data would be misled.
                    for moment in track:
                        np.clip(moment.action, 0, 1, out=moment.action, where=grippers)
                    write_track(writer, result.scenario, result.success_once, track)
                    if viewed is not None:
                        show_track(viewed, result.scenario, result.success_once, track)
                    written, frames = written + 1, frames + len(track)
                progress(len(played), len(scenarios))

            play_tracks(lanes, scenarios, ended, ChunkPlayer(actor, crew.plan.slots, spec.action_dim))
            if not written:
                raise OutputError(
                    f"{directory}: none of {len(played)} episodes succeeded, so there is nothing to write; record more "
                    "episodes, or all (without --success-only)"
                )
        try:
            replace_directory(unfinished, directory)
        except OSError as error:
            raise cannot_write(directory, error) from error
    return Recorded(len(played), sum(result.success_once for result in played), written, frames)
