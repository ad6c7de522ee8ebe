"""A whole data set, looked at before it is learned from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from treadle.config.dataset import CheckConfig
from treadle.data.demonstrations import Demonstrations, Scan, scan_demonstrations
from treadle.data.lerobot_info import Columns
from treadle.errors import ConfigError
from treadle.policies.embodiment import read_embodiment
from treadle.policies.load import load_configured
from treadle.policies.protocol import Policy
from treadle.supervised.checks import check_policy, clipped_dimensions
from treadle.supervised.findings import (
    Finding,
    find_idle,
    find_odd_lengths,
    find_odd_numbers,
    find_problems,
    find_unreadable,
)
from treadle.supervised.open_loop import open_loop_error
from treadle.supervised.replay import replay

MOST = 1000
"""Findings of a kind that are kept."""


@dataclass(slots=True)
class Checked:
    """What was found."""

    episodes: int = 0
    frames: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])
    open_loop: dict[str, Any] | None = None
    """The policy's error, as `OpenLoopError.report` has it."""
    replayed: dict[str, int] | None = None
    """Episodes that were played again, and successes."""

    @property
    def refused(self) -> bool:
        """Nobody can learn from the data set as it is."""
        return any(finding.refused for finding in self.findings)

    def report(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "refused": self.refused,
            "episodes": self.episodes,
            "frames": self.frames,
            "findings": [finding.report() for finding in self.findings],
            "open_loop": self.open_loop,
            "replayed": self.replayed,
        }


def check_dataset(
    directory: Path,
    config: CheckConfig,
    *,
    policy: Path | None = None,
    replays: int = 0,
    device: str = "auto",
    stage: Callable[[str], None] = lambda _: None,
) -> Checked:
    """Look at a data set; with a policy, at what it makes of it; with `replays`, at so many episodes in the simulator.

    Raises CheckpointError for a policy that cannot be loaded, and ConfigError for what cannot be asked of the data set.
    """
    checked = Checked()

    def add(found: Any) -> None:
        checked.findings += islice(found, MOST)

    stage("reading numbers")
    columns = Columns(config.columns.action, config.columns.state)
    try:
        scan = scan_demonstrations(directory, config.cameras or None, columns)
        add(find_problems(scan))
        if checked.refused:
            return _counted(checked, scan)
        demonstrations = scan.demonstrations()
    except ConfigError as error:
        checked.findings.append(Finding("structure", True, str(error)))
        return checked
    loaded = None if policy is None else load_configured(policy, config.policy, device=device)
    add(find_odd_lengths(scan, None if loaded is None else loaded.predicted))
    add(find_idle(scan))
    add(find_odd_numbers(scan))
    stage("reading frames")
    add(find_unreadable(scan, demonstrations))
    if checked.refused:
        return _counted(checked, scan)
    if loaded is not None and policy is not None:
        stage("asking the policy")
        _check_policy(checked, directory, demonstrations, loaded, policy)
    if replays:
        stage("playing episodes again")
        found = replay(demonstrations, config.simulator, replays)
        checked.findings += found.findings
        checked.replayed = {"episodes": found.episodes, "successes": found.successes}
    return _counted(checked, scan)


def _check_policy(checked: Checked, directory: Path, data: Demonstrations, policy: Policy, folder: Path) -> None:
    """Numbers that a policy does not take, or clips; and how far its actions are from those of the data set."""
    try:
        check_policy(directory, data, policy)
        embodiment = read_embodiment(folder)
        # Differences are scaled by statistics of their own.
        if policy.scaling is not None and (embodiment is None or not embodiment.deltas):
            for line, other_units in clipped_dimensions(data, policy.scaling):
                checked.findings.append(Finding("units" if other_units else "clipped", other_units, line))
        found = open_loop_error(policy, data, None if embodiment is None else embodiment.restore)
        checked.open_loop = found.report()
    except ConfigError as error:
        checked.findings.append(Finding("policy", True, str(error)))


def _counted(checked: Checked, scan: Scan) -> Checked:
    checked.episodes, checked.frames = len(scan.episodes), sum(episode.length for episode in scan.episodes)
    return checked
