"""Episodes for the viewer Rerun: a file for each, with frames, proprioception, actions and reward over time.

T control steps, K cameras, H and W pixels, P numbers of proprioception, A action dimensions.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.errors import OutputError
from treadle.files import cannot_write
from treadle.plugins import import_extra

STEP, TIME = "control step", "time"
"""The timelines."""
_QUALITY = 90
"""Of JPEG; raw frames would be ten times as large."""


def rerun_package() -> Any:
    """Rerun's package. Raises ConfigError where it is not installed."""
    return import_extra("rerun", "rerun", "--rerun")


class RerunWriter:
    """Writes `EPISODE-SCENARIO.rrd` files into a folder; `rerun FILE` shows one, `rerun FOLDER/*.rrd` all.

    Args:
        directory: the folder; made where it is not there.
        cameras: their names.
        action_names: names of the action dimensions.
        control_hz: control steps per second.

    Raises:
        ConfigError: The package is not installed.
        OutputError: The folder cannot be written.
    """

    def __init__(self, directory: Path, cameras: Sequence[str], action_names: Sequence[str], control_hz: float) -> None:
        self._rerun = rerun_package()
        self._directory, self._cameras, self._action_names, self._hz = directory, cameras, action_names, control_hz
        self._count = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(directory, error) from error

    def add_episode(
        self,
        frames: NDArray[np.uint8],
        proprioception: NDArray[np.float32],
        actions: NDArray[np.float32],
        rewards: NDArray[np.float32],
        instruction: str,
        success: bool,
        scenario: str,
    ) -> Path:
        """Write an episode: frames [T, K, H, W, 3], proprioception [T, P], the actions [T, A] taken at each, and the
        rewards [T] that came of them. Raises OutputError.
        """
        rerun = self._rerun
        name = f"{self._count:05d}-{re.sub(r'[^a-zA-Z0-9_.-]+', '-', scenario)}"
        path = self._directory / f"{name}.rrd"
        self._count += 1
        recording = rerun.RecordingStream("treadle", recording_id=name)
        try:
            recording.save(path)
        except (OSError, RuntimeError) as error:
            raise OutputError(f"cannot write {path}: {error}; choose another folder by --rerun") from error
        outcome = f"{instruction}\n\n{'success' if success else 'failure'}, {len(actions)} control steps, {scenario}"
        recording.log("instruction", rerun.TextDocument(outcome), static=True)
        states = [f"p{i}" for i in range(proprioception.shape[1])]
        series = {"action": (actions, self._action_names), "proprioception": (proprioception, states)}
        series = {name: each for name, each in series.items() if each[1]} | {"reward": (rewards[:, None], ["reward"])}
        for entity, (_, names) in series.items():
            recording.log(entity, rerun.SeriesLines(names=list(names)), static=True)
        for step in range(len(actions)):
            recording.set_time(STEP, sequence=step)
            recording.set_time(TIME, duration=step / self._hz)
            for camera, frame in zip(self._cameras, frames[step], strict=True):
                recording.log(f"camera/{camera}", rerun.Image(frame).compress(jpeg_quality=_QUALITY))
            for entity, (values, _) in series.items():
                recording.log(entity, rerun.Scalars(values[step]))
        recording.flush()
        recording.disconnect()
        return path
