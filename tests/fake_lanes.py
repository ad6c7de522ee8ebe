"""Rollouts of the fake policy on lanes of the fake simulator."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from fakes import FakePolicy, Script
from treadle.config.algorithm import DataNeeds
from treadle.data.batch import TensorBatch
from treadle.data.rollout import Rollout
from treadle.policies.protocol import Sampling
from treadle.rollout.actor import Actor
from treadle.rollout.collector import Collector
from treadle.rollout.sources import ScenarioStream
from treadle.simulators.factory import SimulatorFactory
from treadle.workers.crew import Crew, CrewPlan
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session

HORIZON = 5
SCRIPTS = {i: Script(ends=1 + i % 4) for i in range(0, 20, 3)}


@dataclass(frozen=True)
class Plan:
    """A crew of the fake simulator, and what it plays."""

    crew: CrewPlan
    needs: DataNeeds
    horizon: int = HORIZON


def plan(slots: int = 7, *, target: str = "DelayedSimulator", **fields: Any) -> Plan:
    """Fields of the crew and of what is needed; `delays`, `trouble`, `once`, `after`, `family` are the simulator's."""
    options = {
        name: fields.pop(name) for name in ("delays", "trouble", "once", "after", "scripts", "family") if name in fields
    }
    needs = {
        name: fields.pop(name)
        for name in ("partial_reset", "group_size", "keep_final", "next_inputs")
        if name in fields
    }
    factory = SimulatorFactory(f"fake_simulator:{target}", {"scripts": SCRIPTS, "horizon": HORIZON, **options})
    return Plan(CrewPlan(factory, slots, **fields), DataNeeds(**{"keep_final": "truncated", **needs}))


@contextmanager
def opened(chosen: Plan, chunk: int = 2) -> Iterator[tuple[Lanes, ScenarioStream]]:
    """Lanes that are ready to begin."""
    with Crew(chosen.crew) as crew:
        yield make_lanes(crew, chosen, chunk)


def make_lanes(crew: Crew, chosen: Plan, chunk: int = 2) -> tuple[Lanes, ScenarioStream]:
    needs = chosen.needs
    stream = ScenarioStream(
        crew.count("train", "train"),
        crew.plan.slots,
        3,
        group_size=needs.group_size,
        partial_reset=needs.partial_reset,
    )
    return Lanes(crew, Session(chosen.horizon, needs.keep_final), stream, chunk), stream


def make_collector(
    lanes: Lanes,
    stream: ScenarioStream,
    policy: Any,
    *,
    valued: bool = True,
    encode: bool = False,
    **rest: Any,
) -> Collector:
    return Collector(lanes, stream, Actor(policy, Sampling(), encode=encode), valued=valued, **rest)


def collect(chosen: Plan, decisions: tuple[int, ...] = (4, 3), batch: int = 1) -> list[Rollout]:
    policy: Any = FakePolicy()
    with opened(chosen, policy.chunk) as (lanes, stream):
        collector = make_collector(lanes, stream, policy, batch=batch, next_inputs=chosen.needs.next_inputs)
        return [collector.collect(count, version=i) for i, count in enumerate(decisions)]


def assert_same(one: Rollout, other: Rollout) -> None:
    for item in fields(Rollout):
        left, right = getattr(one, item.name), getattr(other, item.name)
        if item.name == "seconds":
            continue
        if isinstance(left, TensorBatch):
            assert left.tensors().keys() == right.tensors().keys()
            assert all(torch.equal(x, right.tensors()[name]) for name, x in left.tensors().items()), item.name
        elif isinstance(left, np.ndarray):
            assert np.array_equal(left, right)
        elif isinstance(left, torch.Tensor):
            assert torch.equal(left, right), item.name
        else:
            assert left == right
