"""Settings of a policy that is served."""

from treadle.config.schema import LoadingConfig, SamplingConfig
from treadle.config.section import Section


class ServeConfig(Section):
    """What `treadle serve` takes as key=value."""

    policy: LoadingConfig = LoadingConfig()
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    """How actions are chosen; by default the most likely ones."""
