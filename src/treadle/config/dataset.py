"""Settings of the commands that write and check data sets."""

from treadle.config.robot import ColumnsConfig
from treadle.config.schema import CollectionConfig, LoadingConfig, SamplingConfig, SimulatorConfig
from treadle.config.section import Section


class RecordConfig(Section):
    """What `treadle record` takes as key=value."""

    policy: LoadingConfig = LoadingConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    collection: CollectionConfig = CollectionConfig()
    sampling: SamplingConfig = SamplingConfig()
    """How actions are chosen."""


class CheckConfig(Section):
    """What `treadle data check` takes as key=value."""

    cameras: tuple[str, ...] = ()
    """Cameras of the data set, in the order in which the policy sees them; none takes all."""
    columns: ColumnsConfig = ColumnsConfig()
    policy: LoadingConfig = LoadingConfig()
    simulator: SimulatorConfig = SimulatorConfig()
