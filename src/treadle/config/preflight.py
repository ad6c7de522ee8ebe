"""Settings of what is tried before the first update of a run."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from treadle.config.section import Natural, Rate, Section


class PreflightConfig(Section):
    """What is tried before the first update: how much of its success the policy keeps while it explores."""

    episodes: Natural = 0
    """Training scenarios that are played, in order, without exploration and then at each temperature; 0 tries
    nothing."""
    choose: bool = False
    """Train at the highest temperature that keeps its share, in place of `policy.sampling.temperature`. Otherwise that
    one alone is tried, and a warning says what it costs."""
    temperatures: tuple[Rate, ...] = ()
    """Temperatures to choose from; none takes those that the policy offers."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the success without exploration that is to be kept."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if (self.choose or self.temperatures) and not self.episodes:
            raise ValueError(
                f"choose {str(self.choose).lower()} with episodes 0: nothing is played to choose by; use "
                "preflight.episodes=128 or so"
            )
        if self.temperatures and not self.choose:
            raise ValueError(
                f"temperatures {list(self.temperatures)} with choose false: policy.sampling.temperature alone is "
                "tried; use preflight.choose=true"
            )
        return self
