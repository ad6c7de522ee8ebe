"""A scripted expert in place of a policy, beside its simulator. Imports numpy, never torch.

Shapes: n slots of a part, C actions of a chunk, A action dimensions.
"""

import numpy as np
from numpy.typing import NDArray

from treadle.data import noise
from treadle.errors import ConfigError
from treadle.simulators.host import Host
from treadle.simulators.protocol import Simulator, Teacher
from treadle.workers.messages import ExpertSettings


class ActingExpert:
    """Decides for the slots of one host, one action at a time.

    Raises ConfigError where the simulator brings no expert, or has no translation for a jitter in metres.
    """

    def __init__(self, settings: ExpertSettings, simulator: Simulator, host: Host, first: int) -> None:
        if not isinstance(simulator, Teacher):
            raise ConfigError(f"simulator {simulator.spec.name!r} brings no scripted expert; choose one that does")
        metres = [dimension.metres for dimension in simulator.spec.actions]
        if settings.jitter and not any(metres):
            raise ConfigError(
                f"demonstrations.jitter {settings.jitter}: no action of simulator {simulator.spec.name!r} is a "
                "translation in metres; use demonstrations.jitter=0"
            )
        self._settings = settings
        self._host = host
        self._expert = simulator.expert(settings.seed + first, miss_probability=settings.miss_probability)
        self._jitter = np.array([settings.jitter / metre if metre else 0.0 for metre in metres], np.float32)

    def act(self) -> NDArray[np.float32]:
        """[n, A] the expert's action of each slot that plays, 0 in others."""
        slots = self._host.playing
        actions = np.zeros((len(self._host.scenarios), len(self._jitter)), np.float32)
        if len(slots):
            actions[slots] = self._expert.act(slots)
        return actions

    def disturbed(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions [n, C, A] with noise on their translations, which follows from seed, scenario and control step."""
        slots = self._host.playing
        if not self._settings.jitter or not len(slots):
            return actions
        indices = np.array([scenario.index for scenario in self._host.scenarios if scenario is not None])
        keys = noise.noise_key(self._settings.jitter_seed, indices, self._host.elapsed[slots])
        played = actions.copy()
        played[slots, 0] += noise.normal(keys, len(self._jitter)) * self._jitter
        return played
