"""Demonstrations, imitation, and a supervised run in miniature."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fake_simulator import ACTIONS, Script, TeachingSimulator
from miniature import IMAGE, SIMULATOR, make_demonstrations, make_policy
from treadle.config.schema import (
    DemonstrationConfig,
    EvaluationConfig,
    GroundingConfig,
    ImitationConfig,
    SupervisedConfig,
    TinyModelConfig,
)
from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.data.demonstrations import Demonstrations, read_demonstrations
from treadle.data.noise import noise_key, normal
from treadle.errors import CheckpointError, ConfigError
from treadle.policies import load_policy
from treadle.reporting.metrics import read_metrics
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.protocol import ActionDimension, tool_motions
from treadle.simulators.tabletop import Tabletop
from treadle.supervised.chunks import Chunks
from treadle.supervised.demonstrations import record_demonstrations
from treadle.supervised.grounding import cosine
from treadle.supervised.imitation import dataset_statistics, imitate
from treadle.supervised.train import train_supervised
from treadle.workers.crew import Crew, CrewPlan

PUSH = (ActionDimension("push", "relative"), ActionDimension("grip", "gripper"))
"""A motion and a gripper."""
TWO_ARMS = tuple(
    ActionDimension(f"{arm}_{what}", kind)
    for arm in ("left", "right")
    for what, kind in (("joint", "absolute"), ("gripper", "gripper"))
)
"""Targets of two arms, with a gripper in the middle."""


MOTIONS = tool_motions(metres=1.0)


def motions(demonstrations: Demonstrations) -> Chunks:
    """Chunks of 4 motions of an arm."""
    return Chunks.of(demonstrations, 4, MOTIONS)


def cut(
    actions: np.ndarray, episode: list[int], size: int, dimensions: tuple[ActionDimension, ...], **settings
) -> tuple[np.ndarray, np.ndarray]:
    """All chunks of some actions, and which of their actions count."""
    found = replace(
        make_demonstrations(), actions=actions, episode_index=np.array(episode), state=settings.pop("state", actions)
    )
    return Chunks.of(found, size, dimensions, **settings).take(np.arange(len(actions)))


def test_chunks_end_with_their_episode_standing_still_with_the_gripper_as_it_was():
    actions = np.array([[1, 0], [2, 1], [3, 0], [4, 1], [5, 1]], np.float32)
    chunks, counted = cut(actions, [0, 0, 0, 1, 1], 3, PUSH)
    assert counted.all()
    assert chunks.tolist() == [
        [[1, 0], [2, 1], [3, 0]],
        [[2, 1], [3, 0], [0, 0]],
        [[3, 0], [0, 0], [0, 0]],
        [[4, 1], [5, 1], [0, 1]],
        [[5, 1], [0, 1], [0, 1]],
    ]
    assert actions[2].tolist() == [3, 0]


def test_chunks_of_one_are_the_actions():
    actions = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert np.array_equal(cut(actions, [0, 1, 1, 2], 1, PUSH)[0][:, 0], actions)


def test_arms_that_are_given_targets_keep_them_past_the_end_of_an_episode():
    actions = np.array([[0.1, 1, 0.5, 0], [0.2, 0, 0.6, 1]], np.float32)
    chunks, _ = cut(actions, [7, 7], 3, TWO_ARMS)
    assert np.array_equal(chunks[0], actions[[0, 1, 1]])
    assert np.array_equal(chunks[1], actions[[1, 1, 1]])


def test_motions_count_past_an_end_and_targets_only_if_they_are_held():
    actions = np.zeros((3, 4), np.float32)
    known = [[True, True, True], [True, True, False], [True, False, False]]
    assert cut(actions[:, :2], [0, 0, 0], 3, PUSH)[1].all()
    assert cut(actions, [0, 0, 0], 3, TWO_ARMS)[1].tolist() == known
    assert cut(actions, [0, 0, 0], 3, TWO_ARMS, held=True)[1].all()


def test_targets_are_learned_as_differences_from_the_proprioception_of_the_decision():
    actions = np.array([[0.1, 1, 0.5, 0], [0.2, 0, 0.7, 1]], np.float32)
    state = np.array([[0.1, 9, 0.25, 9, 9], [0.2, 9, 0.5, 9, 9]], np.float32)
    chunks, _ = cut(actions, [0, 0], 2, TWO_ARMS, deltas=True, state=state)
    wanted = [[[0, 1, 0.25, 0], [0.1, 0, 0.45, 1]], [[0, 0, 0.2, 1], [0, 0, 0.2, 1]]]
    assert chunks == pytest.approx(np.array(wanted), abs=1e-6)
    with pytest.raises(ConfigError, match=r"robot.deltas: actions have 4 dimensions, proprioception has 2"):
        cut(actions, [0, 0], 2, TWO_ARMS, deltas=True, state=state[:, :2])


def test_statistics_of_differences_are_those_of_all_places_of_chunks_that_count():
    actions = np.array([[1, 0, 1, 0], [3, 0, 1, 0], [6, 0, 1, 0]], np.float32)
    found = replace(make_demonstrations(), actions=actions, episode_index=np.zeros(3, np.int64), state=actions)
    learned = Chunks.of(found, 2, TWO_ARMS, deltas=True).learned_actions()
    assert learned[:, 0].tolist() == [0, 2, 0, 3, 0]


def test_what_does_not_count_changes_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of an episode of 2 frames and chunks of 4, the targets of the last two or three places may be anything."""
    policy, demonstrations = make_policy(tmp_path), make_demonstrations((2, 2))
    inner, masks = policy.supervised_loss, list[list[list[bool]]]()

    def spy(inputs, targets, *, counted, **settings):
        masks.append(counted.tolist())
        plain = inner(inputs, targets, counted=counted, **settings)
        other = targets.unflatten(1, (4, 7)).clone()
        other[~counted] = policy.codec.first_id
        assert torch.equal(inner(inputs, other.flatten(1), counted=counted, **settings), plain)
        by_hand = [inner(inputs, targets, counted=one, **settings) for one in _single(counted)]
        assert plain.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)
        return plain

    monkeypatch.setattr(policy, "supervised_loss", spy)
    targets = tuple(ActionDimension(f"a{i}", "absolute") for i in range(7))
    settings = ImitationConfig(steps=1, batch=4, grounding_share=0)
    imitate(policy, demonstrations, Chunks.of(demonstrations, 4, targets), settings, 0, None, lambda *_: None)
    assert sorted(masks[0]) == [[True, False, False, False]] * 2 + [[True, True, False, False]] * 2


def _single(counted: torch.Tensor) -> Iterator[torch.Tensor]:
    """Masks that count one of the actions each."""
    for row, place in counted.nonzero().tolist():
        mask = torch.zeros_like(counted)
        mask[row, place] = True
        yield mask


def test_both_grippers_of_two_arms_stay_as_they_are_in_statistics():
    demonstrations = make_demonstrations()
    demonstrations.actions = demonstrations.actions[:, :4]
    assert dataset_statistics(demonstrations, TWO_ARMS)["action"]["mask"] == [True, False, True, False]


def test_a_data_set_of_another_robot_is_refused():
    with pytest.raises(ConfigError, match=r"dataset: its actions have 7 dimensions, the simulator's have 2 \(push, gr"):
        dataset_statistics(make_demonstrations(), PUSH)
    with pytest.raises(ConfigError, match=r"dataset: its actions have 3 dimensions"):
        cut(np.zeros((2, 3), np.float32), [0, 0], 1, PUSH)


def test_statistics_of_a_data_set():
    statistics = dataset_statistics(make_demonstrations(), MOTIONS)
    action, proprioception = statistics["action"], statistics["proprio"]
    assert action["mask"] == [True] * 6 + [False]
    assert proprioception["mask"] == [True] * 7
    assert action["max"][6] == 1.0
    assert action["min"][0] == pytest.approx(np.sin(5) * 0.02)
    assert len(action["q01"]) == len(proprioception["q99"]) == 7
    assert (statistics["num_transitions"], statistics["num_trajectories"]) == (10, 2)


class Tracking(TeachingSimulator):
    """Keeps every action that each scenario's episode has played; its expert asks for the motion 1, open."""

    def __init__(self, slots: int, actions: tuple[ActionDimension, ...] = ACTIONS, fails: int | None = None) -> None:
        super().__init__(slots, {index: Script(ends=3, succeeds=(3,)) for index in range(20) if index != fails})
        self.spec = replace(self.spec, actions=actions)
        self.played: dict[int, list[list[float]]] = {}

    def step(self, slots, actions, limits):
        for row, slot in enumerate(slots.tolist()):
            self.played.setdefault(self.now[slot].index, []).append(actions[row, 0].tolist())  # type: ignore[union-attr]
        return super().step(slots, actions, limits)

    def expert(self, seed, *, miss_probability=0.0):
        return Pulling()


class Pulling:
    def act(self, slots):
        return np.ones((len(slots), 2), np.float32)


def played(simulator: Tracking) -> dict[int, list[list[float]]]:
    """Called where the simulator is."""
    return simulator.played


@contextmanager
def tracking(slots: int, *, lanes: int = 1, workers: int = 1, **options) -> Iterator[Crew]:
    factory = SimulatorFactory(f"{__name__}:Tracking", options)
    with Crew(CrewPlan(factory, slots, lanes=lanes, workers=workers)) as crew:
        yield crew


def played_with(folder: Path, slots: int, *, lanes: int = 1, workers: int = 1, **settings) -> np.ndarray:
    """[episodes, steps, dimensions] what was played."""
    config = DemonstrationConfig(episodes=5, **settings)
    with tracking(slots, lanes=lanes, workers=workers) as crew:
        assert record_demonstrations(crew, config, 0, folder, lambda *_: None) == 1
        by_index = {}
        for worker in range(crew.workers):
            by_index |= crew.call(f"{__name__}:played", worker=worker)
    return np.array([by_index[index] for index in range(5)])


def test_jitter_is_in_metres_on_translations_alone_and_is_not_recorded(tmp_path: Path):
    played = played_with(tmp_path / "d", 2, jitter=0.05)
    # Of the fake simulator 1 is half a metre, so that 5 cm are 0.1.
    assert (played[..., 1] == 1).all()
    noise = played[..., 0] - 1
    assert 0.05 < noise.std() < 0.2
    assert noise[3, 1] == pytest.approx(0.05 / 0.5 * normal(noise_key(0, 3, 1), 2)[0, 0], abs=1e-6)
    assert (read_demonstrations(tmp_path / "d").actions == 1).all()
    assert json.loads((tmp_path / "d/meta/info.json").read_text())["features"]["action"]["names"] == ["pull", "grip"]


def test_jitter_is_that_of_the_scenario_and_the_step_whatever_the_slots(tmp_path: Path):
    first, second, third, other = (
        played_with(tmp_path / str(i), slots, lanes=lanes, workers=workers, jitter=0.05, seed=seed)
        for i, (slots, lanes, workers, seed) in enumerate([(1, 1, 1, 0), (3, 1, 1, 0), (4, 2, 2, 0), (3, 1, 1, 1)])
    )
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)
    assert not np.array_equal(second, other)


def test_jitter_where_nothing_is_a_translation_is_refused(tmp_path: Path):
    with (
        tracking(1, actions=TWO_ARMS) as crew,
        pytest.raises(
            ConfigError,
            match=r"demonstrations.jitter 0.004: no action of simulator 'fake' is a translation in metres; use",
        ),
    ):
        record_demonstrations(crew, DemonstrationConfig(), 0, tmp_path / "d", lambda *_: None)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(("slots", "lanes", "workers"), [(1, 1, 1), (3, 2, 2)])
def test_only_successes_are_kept_in_the_order_of_their_scenarios(tmp_path: Path, slots: int, lanes: int, workers: int):
    """Each with what was seen before the first action and after each but the last."""
    config = DemonstrationConfig(episodes=4, jitter=0)
    with tracking(slots, lanes=lanes, workers=workers, fails=1) as crew:
        rate = record_demonstrations(crew, config, 0, tmp_path / "d", lambda *_: None)
        kept = [scenario.id for scenario in crew.scenarios("train", "train", 0, 4) if scenario.index != 1]
    assert rate == 0.75
    demonstrations = read_demonstrations(tmp_path / "d")
    assert demonstrations.scenarios == kept
    assert demonstrations.state.tolist() == [[index, step] for index in (0, 2, 3) for step in range(3)]
    assert demonstrations.instructions == [f"do {index}" for index in (0, 2, 3) for _ in range(3)]


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


@pytest.mark.integration
def test_recorded_demonstrations_are_read_back(tmp_path: Path):
    options = {"horizon": 60, "image_size": IMAGE, "threads": 1}
    simulator = Tabletop(1, **options)
    progress: list[tuple[int, int]] = []
    config = DemonstrationConfig(episodes=3, miss_probability=0, jitter=0)
    with Crew(CrewPlan(SimulatorFactory("treadle.simulators.tabletop:Tabletop", options), 2)) as crew:
        rate = record_demonstrations(crew, config, 0, tmp_path / "d", lambda *done: progress.append(done))
    assert rate == 1.0
    assert progress[-1] == (3, 3)
    demonstrations = read_demonstrations(tmp_path / "d")
    scenarios = simulator.scenarios("train", "train")[:3]
    assert demonstrations.scenarios == [scenario.id for scenario in scenarios]
    assert demonstrations.cameras == ("front",)
    assert demonstrations.fps == round(simulator.spec.control_hz)
    starts = np.flatnonzero(demonstrations.frame_index == 0)
    assert [demonstrations.instructions[start] for start in starts] == [scenario.instruction for scenario in scenarios]
    # Playing the recorded actions solves each scenario at the last of them, and meets the recorded states.
    for scenario, rows in zip(scenarios, np.split(np.arange(len(demonstrations.actions)), starts[1:]), strict=True):
        slot = np.array([0])
        simulator.reset(slot, [scenario])
        outcome = simulator.step(slot, demonstrations.actions[rows][None], np.array([len(rows)]))
        assert outcome.success[0].tolist() == [False] * (len(rows) - 1) + [True]
    assert demonstrations.state.shape[1] == simulator.spec.proprioception_dim
    simulator.close()


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> tuple[SupervisedConfig, Path]:
    config = SupervisedConfig(
        name="tiny",
        output=tmp_path_factory.mktemp("runs"),
        device="cpu",
        torch_threads=1,
        model=TinyModelConfig(width=32, layers=2, mlp=64, tower_widths=((16, 16, 32, 32), (8, 8, 16, 16))),
        simulator=SIMULATOR.model_copy(update={"slots": 2, "horizon": 60}),
        grounding=GroundingConfig(scenes=32, detection_steps=50, joint_steps=50, batch=4),
        demonstrations=DemonstrationConfig(episodes=2, miss_probability=0),
        imitation=ImitationConfig(steps=50, batch=8),
        evaluation=EvaluationConfig(suites=("train",), episodes=2, slots=2, videos=0),
    )
    return config, train_supervised(config)


@pytest.mark.integration
def test_a_supervised_run_makes_a_checkpoint(supervised: tuple[SupervisedConfig, Path]):
    config, directory = supervised
    assert directory == config.output / "tiny"
    policy = load_policy(directory / "policy", device="cpu")
    assert (policy.chunk, policy.action_dim) == (4, 7)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert lines[0].keys() >= {"detection/loss", "detection/object_error", "detection/plate_error"}
    assert lines[1].keys() >= {"grounding/loss", "grounding/object_error", "grounding/plate_error"}
    assert lines[2].keys() >= {"imitation/loss", "imitation/total"}
    assert lines[2]["imitation/total"] > lines[2]["imitation/loss"], "scenes are mixed in"
    report = json.loads((directory / "evaluation" / "base.json").read_text())
    assert report["suites"]["train"]["episodes"] == 2
    assert report["manifest"]["checkpoint"] == "tiny", "the run of that name"
    assert len(read_demonstrations(directory / "demonstrations").actions) > 10


@pytest.mark.integration
def test_the_same_supervised_command_can_be_given_again(
    supervised: tuple[SupervisedConfig, Path], monkeypatch: pytest.MonkeyPatch
):
    """A run that was cut short goes on from the demonstrations and the perception that it had, to the same weights."""
    config, directory = supervised
    monkeypatch.delattr("treadle.supervised.train.pretrain_vision")
    lines = read_metrics(directory)
    before = (directory / "policy" / "model.safetensors").read_bytes()
    half_written = directory / ".demonstrations"
    half_written.mkdir()
    (half_written / "data").touch()
    assert train_supervised(config) == directory
    assert (directory / "policy" / "model.safetensors").read_bytes() == before
    again = read_metrics(directory)
    assert again[:2] == lines[:2], "what perception reported is kept"
    assert [line["iteration"] for line in again] == [1, 2, 3]
    assert again[2]["seconds"] > again[1]["seconds"]


@pytest.mark.integration
def test_perception_that_was_cut_short_is_learned_again(supervised: tuple[SupervisedConfig, Path]):
    config, directory = supervised
    before = (directory / "policy" / "model.safetensors").read_bytes()
    (directory / "perception").rename(directory / ".perception")
    assert train_supervised(config) == directory
    assert (directory / "policy" / "model.safetensors").read_bytes() == before
    assert not (directory / ".perception").exists()


@pytest.mark.integration
def test_another_policy_takes_the_towers(
    supervised: tuple[SupervisedConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One that decodes otherwise, and has no proprioception; only the joint stage of perception is left to it."""
    config, directory = supervised
    monkeypatch.delattr("treadle.supervised.train.pretrain_vision")
    towers = str(directory / "policy")
    other = config.model_copy(
        update={
            "name": "other",
            "output": tmp_path,
            "model": config.model.model_copy(update={"kind": "openvla"}),
            "grounding": config.grounding.model_copy(update={"towers": towers}),
        }
    )
    run = train_supervised(other)
    before, after = (load_policy(folder / "policy", device="cpu").state_dict() for folder in (directory, run))
    seen = [name for name in after if name.partition(".")[0] in ("vision_backbone", "projector")]
    assert seen
    assert all(torch.equal(after[name], before[name]) for name in seen)
    lines = read_metrics(run)
    assert [line["iteration"] for line in lines] == [1, 2]
    assert "grounding/loss" in lines[0]
    wide = other.model.model_copy(update={"tower_widths": ((16, 16, 32, 64), (8, 8, 16, 16))})
    with pytest.raises(CheckpointError, match="has shape"):
        train_supervised(other.model_copy(update={"name": "third", "model": wide}))


@pytest.mark.integration
def test_a_supervised_run_from_a_checkpoint_and_a_data_set(
    supervised: tuple[SupervisedConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, directory = supervised
    again = config.model_copy(
        update={
            "name": "again",
            "output": tmp_path,
            "checkpoint": str(directory / "policy"),
            "dataset": directory / "demonstrations",
        }
    )
    run = train_supervised(again)
    assert not (run / "demonstrations").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1]
    assert lines[0]["imitation/total"] == lines[0]["imitation/loss"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is no LeRobot dataset"):
        train_supervised(again.model_copy(update={"name": "third", "dataset": Path("absent")}))


@pytest.mark.integration
def test_a_data_set_in_other_units_is_refused_or_scaled_by_its_own_statistics(
    supervised: tuple[SupervisedConfig, Path], tmp_path: Path
):
    config, directory = supervised
    found = read_demonstrations(directory / "demonstrations")
    with DemonstrationWriter(
        tmp_path / "millimetres",
        fps=found.fps,
        cameras=found.cameras,
        height=IMAGE,
        width=IMAGE,
        action_names=[f"a{i}" for i in range(7)],
        state_names=[f"s{i}" for i in range(found.state.shape[1])],
    ) as writer:
        rows = found.episode_index == 0
        actions = found.actions[rows] * np.array([1000] * 3 + [1] * 4, np.float32)
        writer.add_episode(found.frames[rows], found.state[rows], actions, found.instructions[0], True, "0")
    again = {
        "output": tmp_path,
        "checkpoint": str(directory / "policy"),
        "dataset": tmp_path / "millimetres",
        "imitation": ImitationConfig(steps=1, batch=2, grounding_share=0),
    }
    with pytest.raises(ConfigError, match=r"millimetres does not fit the checkpoint's statistics 'tabletop', which cl"):
        train_supervised(config.model_copy(update=again))
    own = ImitationConfig(steps=1, batch=2, grounding_share=0, statistics="dataset")
    run = train_supervised(config.model_copy(update=again | {"name": "own", "imitation": own}))
    scaling = load_policy(run / "policy", device="cpu").scaling
    assert scaling is not None
    assert scaling.action.high[:3].max() == pytest.approx(np.quantile(actions[:, :3], 0.99, axis=0).max(), rel=1e-5)
