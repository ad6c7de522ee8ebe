"""What can be said of a SmolVLA's directory."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.policies.inspection import CheckpointContents, count_contents, count_types
from treadle.policies.smolvla.config import ACTION
from treadle.policies.smolvla.statistics import list_groups

if TYPE_CHECKING:
    from treadle.policies.smolvla.policy import SmolVLA


def examine(policy: "SmolVLA", directory: Path) -> CheckpointContents:
    """What the directory holds that `policy` was loaded from."""
    found, stored = policy.found, policy.found.layout.values()
    steps = policy.noise.steps
    groups = sorted(list_groups(found.processors.statistics).items())
    return replace(
        count_contents(directory, policy.kind, policy),
        types=count_types(stored),
        stored_bytes=sum(entry.bytes for entry in stored),
        files=len({entry.file for entry in stored}),
        settings=found.settings.model_dump(),
        descriptions={
            "chunk": f"{policy.chunk} of {policy.predicted} predicted actions, in {steps} steps from noise",
            "cameras": ", ".join(found.published.cameras()[: found.settings.cameras]),
        },
        statistics={group or "plain": policy.action_dim for group, there in groups if ACTION in there},
    )
