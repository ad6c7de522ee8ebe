"""Rollouts of the fake policy on lanes of the fake simulator."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch

from fakes import FakePolicy, Script
from treadle.data.rollout import Rollout
from treadle.policies.critic import ValueHeadCritic
from treadle.policies.protocol import Sampling
from treadle.rollout.collector import Collector
from treadle.rollout.lanes import Lanes, LanesPlan
from treadle.simulators.factory import SimulatorFactory

HORIZON = 5
SCRIPTS = {i: Script(ends=1 + i % 4) for i in range(0, 20, 3)}


def plan(slots: int = 7, *, stream: dict[str, Any] | None = None, **fields: Any) -> LanesPlan:
    """Lanes of the fake simulator; `delays`, `trouble`, `once` and `after` are its own."""
    options = {name: fields.pop(name) for name in ("delays", "trouble", "once", "after") if name in fields}
    factory = SimulatorFactory("fake_simulator:DelayedSimulator", {"scripts": SCRIPTS, "horizon": HORIZON, **options})
    return LanesPlan(factory, slots, HORIZON, {"seed": 3, **(stream or {})}, **fields)


def make_collector(lanes: Lanes, policy: Any, batch: int = 1) -> Collector:
    return Collector(lanes, policy, Sampling(), ValueHeadCritic(policy), encode=False, batch=batch)


def collect(chosen: LanesPlan, decisions: tuple[int, ...] = (4, 3), batch: int = 1) -> list[Rollout]:
    policy: Any = FakePolicy()
    with Lanes(chosen, policy.chunk) as lanes:
        collector = make_collector(lanes, policy, batch)
        return [collector.collect(count, version=i) for i, count in enumerate(decisions)]


def assert_same(one: Rollout, other: Rollout) -> None:
    for item in fields(Rollout):
        left, right = getattr(one, item.name), getattr(other, item.name)
        if item.name == "seconds":
            continue
        if item.name == "inputs":
            left = torch.stack([inputs.frames for inputs in left])
            right = torch.stack([inputs.frames for inputs in right])
        if item.name == "episodes":
            assert left == right
        elif isinstance(left, np.ndarray):
            assert np.array_equal(left, right)
        else:
            assert torch.equal(left, right), item.name
