"""Settings of a data set of your own, and of the robot that it is of."""

from typing import Annotated, Literal

from pydantic import Field

from treadle.config.section import Natural, Section


class ColumnsConfig(Section):
    """The columns of a data set that are read."""

    action: str = "action"
    """What was done."""
    state: str | None = None
    """Proprioception; none takes `observation.state`, where the data set has it."""


class RobotConfig(Section):
    """A robot that there is a data set of, and no simulator."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)] | None = None
    """Its name, under which the data set's statistics are saved. The policy is then trained for it and compared with
    the data set; none trains for the simulator."""
    actions: Literal["absolute", "relative"] = "absolute"
    """What actions are: targets, such as joint angles, or motions, where 0 stands still."""
    grippers: tuple[Natural, ...] = ()
    """Dimensions of actions that are grippers in [0, 1], which are not scaled."""
    deltas: bool = False
    """Learn targets as differences from the proprioception at the decision, whose first numbers must be those that
    the action sets, as openpi does."""
    held_out: Natural = 0
    """Last episodes that are not learned; the open-loop error is then measured on them."""
