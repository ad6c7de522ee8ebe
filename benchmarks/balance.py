"""A policy with random weights for any simulator, of a size whose decisions take about as long as simulating.

Then most is gained by doing both at the same time, and most is lost by whatever keeps them from it.
"""

from collections.abc import Callable
from contextlib import closing
from statistics import median

import numpy as np

from benchmarks.elsewhere import open_in_a_process
from benchmarks.family import family_class
from benchmarks.timing import time_rounds
from treadle.config.supervised import TinyModelConfig
from treadle.cores import pinned
from treadle.data.observation import Observation
from treadle.errors import ConfigError
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.sizes import make_statistics
from treadle.policies.protocol import Policy, Sampling
from treadle.simulators.protocol import Simulator, SimulatorSpec
from treadle.workers.crew import CrewPlan

WIDTHS = (64, 128, 256, 512, 1024)
SHALLOWEST, DEEPEST = 1, 12
"""Decoder layers."""
_HEAD_WIDTH, _MLP = 32, 4
"""Numbers of a head, and hidden units of an MLP by the decoder's width: as a tiny policy has them."""
_MOTION = 0.01
"""Actions stay within this: nothing is solved, so every slot plays every step."""
_SCENARIOS = 1000
"""Of the training suite, whose instructions make the policy's words."""
_PROMPT_LENGTH = 64


def sized(model: TinyModelConfig, width: int, layers: int) -> TinyModelConfig:
    """The model with a decoder of this width and depth."""
    sizes = {"width": width, "layers": layers, "heads": max(1, width // _HEAD_WIDTH), "mlp": _MLP * width}
    return model.model_copy(update=sizes)


def parse_size(size: str) -> tuple[int, int]:
    """Width and layers of a decoder, from `WIDTHxLAYERS`. Raises ConfigError."""
    width, _, layers = (int(part) if part.isdecimal() else part for part in size.partition("x"))
    if not (isinstance(width, int) and isinstance(layers, int) and layers and width) or width % _HEAD_WIDTH:
        raise ConfigError(
            f"size: found {size!r}; allowed is WIDTHxLAYERS of a decoder, as 256x8; {_HEAD_WIDTH} divides its width"
        )
    return width, layers


def random_policy(
    plan: CrewPlan, model: TinyModelConfig, size: tuple[int, int] | None, generate_cores: tuple[int, ...]
) -> PrismaticPolicy:
    """A policy for the plan's simulator, with a decoder of this width and depth; without a size, of one whose decision
    for all slots takes about as long as simulating its chunk.

    Simulating is timed on the plan's cores, deciding on `generate_cores`. Raises what building the simulator raises.
    """
    with pinned(plan.cores), closing(_open(plan)) as simulator:
        spec = simulator.spec
        texts = sorted({what.instruction for what in simulator.scenarios("train", "train")[:_SCENARIOS]})
        seen = spec.observation(plan.slots)
        simulate = 0.0 if size else _simulate_seconds(simulator, seen, model.chunk)

    def make(width: int, layers: int) -> PrismaticPolicy:
        return _make(sized(model, width, layers), spec, texts)

    if size is None:
        with pinned(generate_cores):
            size = size_that_takes(simulate, lambda *tried: _generate_seconds(make(*tried), seen, texts[0]))
    return make(*size)


def size_that_takes(seconds: float, measure: Callable[[int, int], float]) -> tuple[int, int]:
    """The narrowest decoder that can take `seconds`, with as many layers, by what `measure` of width and layers says;
    where none can, the nearest.
    """
    width, few, many = 0, 0.0, 0.0
    for width in WIDTHS:
        few, many = measure(width, SHALLOWEST), measure(width, DEEPEST)
        if many >= seconds:
            break
    share = (seconds - few) / max(many - few, 1e-9)
    return width, SHALLOWEST + round(min(max(share, 0.0), 1.0) * (DEEPEST - SHALLOWEST))


def _open(plan: CrewPlan) -> Simulator:
    if plan.kind == "processes":
        return open_in_a_process(plan.factory, plan.slots, plan.timeout)
    return plan.factory(plan.slots)


def _simulate_seconds(simulator: Simulator, seen: Observation, chunk: int) -> float:
    """Of a chunk in every slot, and of looking at the end of it, which leaves `seen`."""
    count, scenarios = simulator.slots, simulator.scenarios("train", "train")
    slots, limits = np.arange(count), np.full(count, chunk)
    actions = np.random.default_rng(0).uniform(-_MOTION, _MOTION, (count, chunk, simulator.spec.action_dim))

    def play() -> None:
        simulator.step(slots, actions.astype(np.float32), limits)
        simulator.observe(slots, seen)

    started = [scenarios[index % len(scenarios)] for index in range(count)]
    return median(time_rounds(play, 0.0, lambda: simulator.reset(slots, started)))


def _generate_seconds(policy: Policy, seen: Observation, text: str) -> float:
    """Of a decision for every slot."""

    def decide() -> None:
        inputs = policy.encode(policy.prepare(seen.frames, [text] * len(seen.frames), seen.proprioception))
        policy.act(inputs, Sampling())

    return median(time_rounds(decide, 0.0))


def _make(model: TinyModelConfig, spec: SimulatorSpec, texts: list[str]) -> PrismaticPolicy:
    actions, seen = [_MOTION] * spec.action_dim, [1.0] * spec.proprioception_dim
    ranges = make_statistics(spec.name, [-x for x in actions], actions, [-x for x in seen], seen)
    made = family_class(model.kind).create_tiny(model, spec, texts, ranges[spec.name], prompt_length=_PROMPT_LENGTH)
    return made.eval()
