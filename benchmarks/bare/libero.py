# libero is in the simulator's own environment alone.
# pyright: reportMissingImports=false

"""LIBERO as its own documentation calls it: nothing of Treadle's scenes and renderers is used."""

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario
from treadle.simulators.libero.conventions import to_control
from treadle.simulators.libero.setup import use_renderer
from treadle.simulators.libero.simulator import Libero
from treadle.simulators.libero.suites import Task, read_states, state_of

_OPEN, _STILL = [0.0] * 6 + [-1.0], [0.0] * 7
_NEVER = 10**6
"""Control steps after which robosuite would refuse to go on."""


class Direct:
    """One environment of LIBERO; a `BareLoop`."""

    def __init__(self, task: Task, size: int, cameras: bool = True) -> None:
        """`cameras`: draw both of them, `size` pixels wide, with every step."""
        use_renderer()
        from libero.libero.envs import OffScreenRenderEnv

        self._states = read_states(task)
        with redirect_stdout(StringIO()):
            self.env = OffScreenRenderEnv(
                bddl_file_name=str(task.description),
                camera_heights=size,
                camera_widths=size,
                use_camera_obs=cameras,
                horizon=_NEVER,
            )
        self.env.seed(0)

    def start(self, state: int, settle: int = 10, still: bool = False) -> dict[str, Any]:
        """Reset it, put it at an initial state, let `settle` control steps pass in which the gripper opens or is
        `still`, and return its observation.
        """
        with redirect_stdout(StringIO()):
            self.env.reset()
        observation = self.env.set_init_state(self._states[state])
        for _ in range(settle):
            observation, *_ = self.env.step(_STILL if still else _OPEN)
        return observation

    def play(self, actions: NDArray[np.float32]) -> None:
        """See `BareLoop.play`."""
        drawing = self.env.sim._render_context_offscreen  # noqa: SLF001
        if drawing is not None:
            drawing.gl_ctx.make_current()  # robosuite draws in whatever context was used last
        for action in to_control(actions[None])[0]:
            self.env.step(action)

    def close(self) -> None:
        """See `BareLoop.close`."""
        self.env.close()


def open_loop(simulator: Libero, scenario: Scenario) -> Direct:
    """At the start of a scenario; it draws as LIBERO does, whatever the simulator's `render` is."""
    loop = Direct(simulator._suites.task(scenario), simulator.spec.height)  # noqa: SLF001
    loop.start(state_of(scenario))
    return loop
