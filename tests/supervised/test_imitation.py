"""Imitation: it learns, it is reproducible, and it sees every decision."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import make_demonstrations, make_policy
from treadle.config.supervised import ImitationConfig
from treadle.data.demonstrations import Demonstrations
from treadle.simulators.protocol import tool_motions
from treadle.supervised.chunks import Chunks
from treadle.supervised.grounding import cosine
from treadle.supervised.imitation import imitate

MOTIONS = tool_motions(metres=1.0)


def motions(demonstrations: Demonstrations) -> Chunks:
    """Chunks of 4 motions of an arm."""
    return Chunks.of(demonstrations, 4, MOTIONS)


def test_the_rate_warms_up_and_falls_to_nothing():
    rates = [cosine(step, 150) for step in range(151)]
    assert rates[0] == 1 / 50
    assert rates[49] == rates[50] == 1
    assert rates[100] == pytest.approx(0.5)
    assert rates[150] == pytest.approx(0)
    assert max(np.abs(np.diff(rates))) < 0.03


@pytest.mark.parametrize("freeze", [True, False])
def test_imitation_learns_two_demonstrations(tmp_path: Path, freeze: bool):
    policy = make_policy(tmp_path)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    lines: list[tuple[int, float, float]] = []
    config = ImitationConfig(
        steps=40 if freeze else 6, batch=8, learning_rate=5e-3, freeze_vision=freeze, grounding_share=0
    )
    demonstrations = make_demonstrations()
    imitate(policy, demonstrations, motions(demonstrations), config, 0, None, lambda *line: lines.append(line))
    assert [line[0] for line in lines] == list(range(config.steps))
    assert all(loss == total for _, loss, total in lines)
    changed = {name.partition(".")[0] for name, x in policy.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {"language_model", "proprio_projector"} | (set() if freeze else {"vision_backbone", "projector"})
    if freeze:
        assert lines[-1][1] < 0.5 * lines[0][1]
    assert not policy.training


def _keep(lines: list[tuple[int, float, float]], *line: float) -> None:
    lines.append(line)  # type: ignore[arg-type]


def test_imitation_is_reproducible_and_its_order_is_the_seeds(tmp_path: Path):
    losses = []
    for seed in (0, 0, 1):
        lines: list[tuple[int, float, float]] = []
        config = ImitationConfig(steps=3, batch=4, grounding_share=0)
        demonstrations = make_demonstrations()
        imitate(
            make_policy(tmp_path), demonstrations, motions(demonstrations), config, seed, None, partial(_keep, lines)
        )
        losses.append(lines)
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_every_decision_is_seen_before_any_is_seen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    policy = make_policy(tmp_path)
    demonstrations = make_demonstrations()
    rows: list[float] = []
    inner = policy.supervised_loss

    def spy(inputs, targets, **settings):
        rows.extend(inputs.proprioception[:, 0].tolist())
        return inner(inputs, targets, **settings)

    monkeypatch.setattr(policy, "supervised_loss", spy)
    settings = ImitationConfig(steps=5, batch=4, grounding_share=0)
    imitate(policy, demonstrations, motions(demonstrations), settings, 0, None, lambda *_: None)
    # 10 decisions, 5 batches of 4: two whole passes, the third batch across both.
    assert len(rows) == 20
    assert len(set(rows[:10])) == len(set(rows[10:])) == 10
