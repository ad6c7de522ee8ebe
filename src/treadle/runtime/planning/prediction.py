"""What a plan says of a run that begins, kept in its folder for the report."""

from pathlib import Path

from treadle.config.schema import TrainConfig
from treadle.files import to_json, write_atomically
from treadle.reporting.folder import PREDICTION_FILE
from treadle.runtime.placement import Placement
from treadle.runtime.planning.candidates import as_configured
from treadle.runtime.planning.profile import Profile


def write_prediction(directory: Path, config: TrainConfig, placement: Placement, profile: Profile) -> None:
    """Write what the timeline of this run is expected to be. Raises OutputError."""
    expected = as_configured(config, placement, profile)
    role, share = expected.bound
    found = {"seconds": expected.seconds, "bound": f"{role} ({share:.0%} of the time)", "source": profile.source}
    write_atomically(directory / PREDICTION_FILE, to_json(found | {"busy": expected.timeline.busy()}) + "\n")
