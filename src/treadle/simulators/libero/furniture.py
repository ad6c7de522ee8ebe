# robosuite is in the simulator's own environment alone.
# pyright: reportMissingImports=false

"""Where cabinets, stoves and racks stand. Initial states do not hold it; LIBERO draws it at every reset.

Shapes: N draws, F pieces of furniture.
"""

from contextlib import redirect_stdout
from io import StringIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from treadle.simulators.libero.suites import STATE_COUNT

Furniture = Literal["fresh", "per-reset", "indexed"]
"""How a protocol resets LIBERO before an episode.

`fresh`: once, after seed 0, in a new environment for each episode (SimpleVLA-RL), so all episodes of a task have the
same. `per-reset`: seed 0 once for a task, then a reset for each of its states in turn (OpenVLA-OFT). `indexed`: once,
after a seed that is the scenario's number in its suite (RLinf, with an environment for each scenario).
"""


def seeds_of(furniture: Furniture, index: int, tasks: int) -> list[tuple[int, int]]:
    """Seeds, and how many resets follow each, for the states of task `index` of a suite of `tasks`; a single draw is
    that of all states.
    """
    if furniture == "fresh":
        return [(0, 1)]
    if furniture == "per-reset":
        return [(0, STATE_COUNT)]
    return [(state * tasks + index, 1) for state in range(STATE_COUNT)]


def bodies_of(env: Any) -> NDArray[np.intp]:
    """[F] numbers of the bodies that are furniture."""
    model = env.sim.model
    names = [fixture.root_body for fixture in env.fixtures_dict.values()]
    return np.array([model.body_name2id(name) for name in names], np.intp)


def draw(env: Any, seeds: list[tuple[int, int]]) -> NDArray[np.float64]:
    """[N, F, 7] positions and quaternions of furniture after each reset, as LIBERO's own `seed` and `reset` draw them
    in an environment that was just built, but without building the scene again. Takes some hundredths of a second each.
    """
    if not env.fixtures_dict:
        return np.zeros((1, 0, 7))
    bodies, model = bodies_of(env), env.sim.model._model  # noqa: SLF001 robosuite hides MuJoCo's own model there
    # Objects are placed relative to furniture where it stands in a scene that was just built, and may be refused there.
    unplaced = np.stack([_as_built(env, fixture) for fixture in env.fixtures_dict.values()])
    # Every time that LIBERO builds a scene it appends what draws the joints of drawers and knobs once more.
    once = list(env.object_property_initializers)
    found: list[NDArray[np.float64]] = []
    before = np.random.get_state()  # noqa: NPY002
    for seed, resets in seeds:
        np.random.seed(seed)  # noqa: NPY002
        env.object_property_initializers = list(once)
        for _ in range(resets):
            _reset(env, once, lambda: _put(model, bodies, unplaced))
            found.append(np.column_stack([model.body_pos[bodies], model.body_quat[bodies]]))
    env.object_property_initializers = once
    np.random.set_state(before)  # noqa: NPY002
    return np.stack(found)


def _put(model: Any, bodies: NDArray[np.intp], poses: NDArray[np.float64]) -> None:
    """Furniture stands at `poses` [F, 7] from the next step on."""
    model.body_pos[bodies], model.body_quat[bodies] = poses[:, :3], poses[:, 3:]


def _reset(env: Any, once: list[Any], build: Any) -> None:
    """What draws in a reset. Like LIBERO, it begins again where things found no room."""
    from robosuite.utils.errors import RandomizationError

    while True:
        env.object_property_initializers += once
        build()
        env.sim.reset()
        try:
            with redirect_stdout(StringIO()):
                env._reset_internal()  # noqa: SLF001
        except RandomizationError:
            continue
        return


def _as_built(env: Any, fixture: Any) -> NDArray[np.float64]:
    """[7] where the scene's description puts a piece of furniture."""
    body = env.model.worldbody.find(f"./body[@name='{fixture.root_body}']")
    numbers = f"{body.get('pos', '0 0 0')} {body.get('quat', '1 0 0 0')}"
    pose = np.array(numbers.split(), np.float64)
    pose[3:] /= np.linalg.norm(pose[3:])
    return pose
