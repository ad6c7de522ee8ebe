"""The checks of a GPU: rehearsed on the CPU, and what becomes of one that fails, hangs or lacks something."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_large, gpu_runs
from benchmarks.gpu import CHECKS, Check, attempt
from benchmarks.gpu_task import FailedError, Task
from benchmarks.policy import make_policy
from treadle.data.rollout import Rollout
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.reporting.metrics import METRICS_FILE

BUDGET = 480


def task(folder: Path) -> Task:
    return Task(True, folder, folder / "found.json")


def test_all_checks_together_keep_the_time() -> None:
    assert sum(check.seconds for check in CHECKS) <= BUDGET
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        module, _, name = check.work.partition(":")
        assert callable(getattr(import_module(module), name))


def test_the_page_names_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gpu-checks.md").read_text()
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert rows == [check.name for check in CHECKS]


def test_one_file_holds_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    assert gpu.main(["--cpu", "--only", "machine", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["rehearsal"]
    (check,) = written["checks"]
    assert (check["name"], check["outcome"], check["limit"]) == ("machine", "works", 25)
    assert {"CUDA", "NCCL", "FSDP2", "Ray"} <= check["figures"].keys()
    assert "its figures say nothing of a GPU" in " ".join(capsys.readouterr().out.split())


def test_a_check_that_fails_or_hangs_is_noted_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = (
        Check("machine", 0.2, "benchmarks.gpu_runs:machine"),
        # They take no Task.
        Check("tests", 60, "json:loads"),
        Check("rates", 60, "math:isnan"),
    )
    monkeypatch.setattr(gpu, "CHECKS", checks)
    file = tmp_path / "gpu.json"
    assert gpu.main(["--cpu", "--json", str(file)]) == 1
    hung, broken, also = json.loads(file.read_text())["checks"]
    assert {each["outcome"] for each in (hung, broken, also)} == {"failed"}
    assert hung["summary"].startswith("not done after 0.2 s")
    assert broken["summary"].startswith("exit code 1: TypeError: the JSON object must be str")
    assert "Traceback" in broken["error"]
    assert "must be real number, not Task" in also["summary"]
    assert "the JSON object must be str" in " ".join(capsys.readouterr().out.split())


def test_what_a_machine_lacks_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_runs, "find_spec", lambda name: None)
    for name, said in (("tests", "pytest is not installed"), ("ray", "Ray is not installed")):
        assert gpu.work(f"benchmarks.gpu_runs:{name}", True, tmp_path / name) == 0
        assert json.loads((tmp_path / name).read_text())["skipped"].startswith(said)


def test_adapters_are_rehearsed(tmp_path: Path) -> None:
    """All is float32 here: 16 bytes for a trained parameter, 4 for a frozen one."""
    given = task(tmp_path)
    assert "predicted" in gpu_large.lora(given)
    found = given.figures
    # Adapters, which are no part of the policy that was made, and the value head.
    trained = found["trained_parameters"]
    frozen = found["weights_gb"] * 1e9 / 4 - trained
    assert 0 < trained < frozen < found["parameters"]
    assert found["predicted_gb"] == pytest.approx((16 * trained + 4 * frozen) / 1e9)
    assert found["offload_freed_gb"] == 0, "on a CPU nothing moves"
    assert found["offload_predicted_gb"] == pytest.approx(8 * trained / 1e9)
    assert found["published_gb"] == pytest.approx(4 * trained / 1e9)
    assert found["second_update"]["update/steps"] == 1


def test_full_fine_tuning_is_rehearsed(tmp_path: Path) -> None:
    given = task(tmp_path)
    assert "parameters trained" in gpu_large.full(given)
    found = given.figures
    trained = found["trained_parameters"]
    assert found["predicted_gb"] == pytest.approx((16 * trained + 4 * (found["parameters"] - trained)) / 1e9)
    assert found["predicted_step_gb"] == pytest.approx(found["predicted_gb"] + 4 * trained / 1e9)
    assert json.loads(given.file.read_text())["figures"]["trained_parameters"] == trained


def test_fewer_layers_are_tried_where_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32, the largest that fits is said to be 12, and 8 to be what the card has room for."""
    tried: list[int] = []
    play = gpu_large._play

    def cramped(policy: PrismaticPolicy, version: int) -> Rollout:
        tried.append(len(policy.language_model.model.layers))
        if tried[-1] > 8:
            raise torch.OutOfMemoryError("too little")
        return play(policy, version)

    monkeypatch.setattr(gpu_large, "_play", cramped)
    monkeypatch.setattr(gpu_large, "_first_layers", lambda _: 12)
    given = task(tmp_path)
    gpu_large.full(given)
    assert tried == [12, 8]
    assert given.figures["out_of_memory"] == [{"layers": 12, "error": "too little"}]
    assert given.figures["layers"] == 8


def test_a_policy_is_cut_to_as_many_layers() -> None:
    for size in ("tiny", "7b"):
        policy = make_policy("openvla_oft", size, torch.device("meta"), torch.bfloat16, layers=2)
        assert len(policy.language_model.model.layers) == 2


def test_as_many_layers_as_fit_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 bytes a parameter: a Llama layer of 7B has 4 x 4096 x 4096 + 3 x 4096 x 11008 + 2 x 4096 parameters."""
    layer = 202_383_360
    given = Task(True, tmp_path, tmp_path / "found.json")
    monkeypatch.setattr(Task, "size", "7b")
    monkeypatch.setattr(Task, "dtype", torch.bfloat16)

    def layers(free: float) -> int:
        monkeypatch.setattr(gpu_large.torch.cuda, "mem_get_info", lambda _: (free, free))
        return gpu_large._fitting_layers(given)

    assert layers(1e12) == 32
    fewest = layers(90e9)
    assert 10 < fewest < 25
    assert layers(90e9 + 20 * layer) == fewest + 1
    assert layers(90e9 + 100 * layer) == fewest + 5


def test_a_log_prob_gap_above_the_alarm_fails(tmp_path: Path) -> None:
    given = task(tmp_path)
    given.note(log_prob_alarm=0.05)
    row = {"time/iteration": 1.0, "update/log_prob_gap_mean": 0.04}
    assert "4.0e-02" in gpu_runs._summary(given, [row])
    with pytest.raises(FailedError, match=r"differ by 0.06 nats"):
        gpu_runs._summary(given, [row, {**row, "update/log_prob_gap_mean": 0.06}])
    with pytest.raises(FailedError, match="no iteration"):
        gpu_runs._summary(given, [{"time/iteration": 1.0}])


@pytest.mark.full
@pytest.mark.integration
def test_the_run_over_ray_is_the_one_without(tmp_path: Path) -> None:
    """Each is a process of its own, as in a call: Ray reads settings when it is first imported."""
    alone, over_ray = (next(check for check in CHECKS if check.name == name) for name in ("quickstart", "ray"))
    for check in (alone, over_ray):
        outcome = attempt(check, True, tmp_path)
        assert outcome.outcome == "works", outcome.error
        assert len(outcome.figures["iterations"]) == 3
        assert (tmp_path / check.name / METRICS_FILE).exists()
    one, other = outcome.figures["first_returns"]
    assert one == other
