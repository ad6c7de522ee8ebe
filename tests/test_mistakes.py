"""Mistakes of a user, each met with its one line: exit code 2, no trace, nothing written, nothing begun."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treadle.cli import app
from treadle.config.algorithm import known_algorithms
from treadle.config.checkpoints import CHECKPOINTS, checkpoints
from treadle.config.loading import load_recipe
from treadle.cores import usable_cores
from treadle.policies.load import installed_policies
from treadle.simulators.build import installed_simulators

CORES = len(usable_cores())
SIMULATORS = f"installed: {', '.join(installed_simulators())}; or name a class as package.module:Class"
POLICIES = f"installed: {', '.join(installed_policies())}; or name a class as package.module:Class"
ALGORITHMS = f"known: {', '.join(known_algorithms())}; or name a class of settings as package.module:Class"
PACKAGED = f"packaged: {', '.join(checkpoints())}"
RECIPES = "`treadle recipes` lists those there are"
PROTOCOLS = "`treadle protocols` lists those there are; or give a path to a .toml file"
SUITES = (
    "choose from train, vision/texture, vision/noise, vision/light, vision/camera, semantic/object, semantic/plate, "
    "semantic/instruction, semantic/distractor_object, semantic/distractor_plate, execution/position, execution/pose, "
    "execution/moved, vision, semantic, execution"
)
FORM = "install what is missing, or mend package.module:function"
NO_RUN = "so this is not the folder of a run; `treadle train` makes one below its output folder"
NO_RESULT = (
    "give a folder that `treadle train` or `treadle eval` made, or the file of its --json; a checkpoint is measured by "
    "`treadle eval` first"
)

SMALL = "simulator.slots=4 simulator.threads=1 torch_threads=1"
"""So that it is quick where a policy and a simulator are made before the mistake is found."""

SPELLING = {
    "tarin quickstart": "No such command 'tarin'. Did you mean 'train'?; see root --help",
    "policy inspec x": "No such command 'inspec'. Did you mean 'inspect'?; see root policy --help",
    "train": "Missing argument 'recipe'; see root train --help",
    "train quickstart --nonsense": "No such option: --nonsense; see root train --help",
    "train quickstart --seed 1": "--seed: settings are given without dashes, as seed=VALUE",
    "train quickstart --gamma 1": "--gamma: settings are given without dashes, as algorithm.gamma=VALUE",
    "train quickstart --learning-rate=1": "--learning-rate: settings are given without dashes, as "
    "critic.learning_rate=VALUE or optimizer.learning_rate=VALUE",
    "train quikstart": "unknown recipe 'quikstart', did you mean 'quickstart' or 'quickstart-grpo'?; "
    f"{RECIPES}; or give a path to a .toml file",
    "train no.toml": f"recipe 'no.toml' does not exist; {RECIPES}",
    "train settings.yaml": "recipe 'settings.yaml' is no .toml or .json file; write it as TOML",
    "train taken": "recipe 'taken' is a folder; for the settings of a run give its file: taken/config.json name=...",
    "train quickstart algorithm.gama=1": "unknown key 'algorithm.gama', did you mean 'algorithm.gamma'?",
    "train quickstart gamma=1": "unknown key 'gamma', did you mean 'algorithm.gamma'?",
    "train quickstart nonsense": "override 'nonsense' is not of the form section.key=value",
    "train quickstart simulator.name=tabeltop": "simulator.name: unknown simulator 'tabeltop', did you mean "
    f"'tabletop'?; {SIMULATORS}",
    "train quickstart simulator.options.image_sze=3": "simulator.options: 'tabletop' takes no option 'image_sze', did "
    "you mean 'image_size'?; options: image_size, reward",
    "train quickstart algorithm.kind=pppo": "algorithm.kind: unknown algorithm 'pppo', did you mean 'ppo'?; "
    + ALGORITHMS,
    "train quickstart algorithm.estimator=gea": "algorithm: estimator 'gea' is unknown, did you mean 'gae'?; use gae, "
    "grpo, dr_grpo, rloo, reinforce_pp_baseline, rloo_to_go, rloo_alike, reinforce_pp, or package.module:function",
    "train quickstart algorithm.loss=clipp": "algorithm: loss 'clipp' is unknown; use clip, or package.module:function",
    "train quickstart critic.kind=value_heads": 'critic.kind: found "value_heads", allowed is "value_head" or '
    '"privileged" or "none"',
    "train quickstart policy.kind=openvla_oftt": "policy.kind: unknown policy 'openvla_oftt', did you mean "
    f"'openvla_oft' or 'openvla'?; {POLICIES}",
    "eval tabletop-base evaluation.episods=3": "unknown key 'evaluation.episods', did you mean 'evaluation.episodes'?",
    "eval tabletop-base episodes=3": "unknown key 'episodes', did you mean 'evaluation.episodes'?",
    "eval tabletop-base --protocol rlinf/libero-131": "unknown protocol 'rlinf/libero-131', did you mean "
    f"'rlinf/libero-130'?; {PROTOCOLS}",
    "protocols treadle/tabletp": "unknown protocol 'treadle/tabletp', did you mean 'treadle/tabletop' or "
    f"'treadle/tabletop-sampled'?; {PROTOCOLS}",
    "recipes quikstart": "unknown recipe 'quikstart', did you mean 'quickstart' or 'quickstart-grpo'?; "
    f"{RECIPES}; or give a path to a .toml file",
    "recipes --keys evl": "--keys: found 'evl'; allowed: train, sft, eval",
    "sft tabletop-base checkpoint=tabletop-base policy.kind=openvla_oftt": "policy.kind: unknown policy "
    f"'openvla_oftt', did you mean 'openvla_oft' or 'openvla'?; {POLICIES}",
    "sft tabletop-base model.kind=x": f"model.kind: unknown policy 'x'; {POLICIES}",
    "simulators install liberro": f"simulator.name: unknown simulator 'liberro', did you mean 'libero'?; {SIMULATORS}",
    "simulators doctor tabeltop": "simulator.name: unknown simulator 'tabeltop', did you mean 'tabletop'?; "
    + SIMULATORS,
    "simulators doctor tabletop libero:x": "simulator.name: 'libero:x': 'libero' takes no id behind a colon; write "
    "libero",
    "simulators view gymnasum:CartPole-v1": "simulator.name: unknown simulator 'gymnasum:CartPole-v1', did you mean "
    f"'gymnasium'?; {SIMULATORS}",
    "plan quickstart simulator.name=tabeltop": "simulator.name: unknown simulator 'tabeltop', did you mean "
    f"'tabletop'?; {SIMULATORS}",
    "plan quickstart policy.kind=openvla_oftt": "policy.kind: unknown policy 'openvla_oftt', did you mean "
    f"'openvla_oft' or 'openvla'?; {POLICIES}",
    "train quickstart --dry-run simulator.options.image_sze=3": "simulator.options: 'tabletop' takes no option "
    "'image_sze', did you mean 'image_size'?; options: image_size, reward",
    "record tabletop-base sampling.temprature=1": "unknown key 'sampling.temprature', did you mean "
    "'sampling.temperature'?",
    "data check x columns.actoin=a": "unknown key 'columns.actoin', did you mean 'columns.action'?",
    "serve tabletop-base policy.knid=openvla": "unknown key 'policy.knid', did you mean 'policy.kind'?",
}
"""Misspelt, or said in another way."""

VALUES = {
    "train quickstart seed=many": 'seed: found "many", allowed is integer >= 0',
    "train quickstart seed=-1": "seed: found -1, allowed is integer >= 0",
    "train quickstart seed=[1]": "seed: found [1], allowed is integer >= 0",
    "train quickstart iterations=0": "iterations: found 0, allowed is integer > 0",
    "train quickstart iterations=1": "critic.warmup_iterations 1 must be below iterations 1, for the critic alone "
    "learns in them: use iterations=2 or more, or critic.warmup_iterations=0",
    "train quickstart simulator.slots=-4": "simulator.slots: found -4, allowed is integer > 0 and <= 65536",
    "train quickstart optimizer.learning_rate=1,5": 'optimizer.learning_rate: found "1,5", allowed is number > 0',
    "train quickstart policy.freeze_vision=yes": 'policy.freeze_vision: found "yes", allowed is true or false',
    "train quickstart algorithm.gamma=7": "algorithm.gamma: found 7, allowed is number > 0 and <= 1",
    "train quickstart overlap=sync": 'overlap: found "sync", allowed is "none" or "stream" or "async"',
    "train quickstart policy.dtype=fp16": 'policy.dtype: found "fp16", allowed is "auto" or "float32" or "bfloat16"',
    "train quickstart evaluation.suites=[train": 'evaluation.suites: found "[train", allowed is list of text',
    "train quickstart policy.frozen_dimensions=[3,": 'policy.frozen_dimensions: found "[3,", allowed is list of '
    "integer >= 0",
    "train quickstart policy.frozen_dimensions=-1": "policy.frozen_dimensions[0]: found -1, allowed is list of "
    "integer >= 0",
    "train quickstart simulator.options.image_size=big": 'simulator.options.image_size: found "big", allowed is '
    "integer",
    "train quickstart placement.train=x": "placement.train: found 'x' in 'x', allowed are all, a number, a range such "
    "as 0-3, each of them after a machine as in node1:0-3, and several with commas between",
    "train quickstart name=a/b": "name: found 'a/b', allowed is the name of one folder, made inside runs",
    "eval tabletop-base --episodes 0": "evaluation.episodes: found 0, allowed is integer > 0",
    "eval tabletop-base --episodes many": "Invalid value for '--episodes': Input should be a valid integer, unable to "
    "parse string as an integer; see root eval --help",
    "eval tabletop-base evaluation.repeats=2": "evaluation: evaluation.repeats 2 with evaluation.sampling.temperature "
    "0: a greedy policy plays a scenario the same way each time; use evaluation.repeats=1, or a temperature above 0",
    "compare taken --page a.pdf": "--page: found 'a.pdf'; allowed is a file that ends in .html or .md",
    "plan quickstart --machines 2": "--machines: found 2 without --devices; say how many graphics cards each has",
    "sft own-robot": "recipe 'own-robot' must be given dataset and robot.name, as dataset=VALUE robot.name=VALUE",
}
"""Of a wrong type, out of range, or not to be read."""

PLACES = {
    "train libero-object": "no checkpoint folder 'runs/libero-object-base/policy'; make it with: treadle sft "
    "libero-object-base",
    "train one-gpu/libero-10-grpo": "no checkpoint folder 'Openvla-oft-SFT-libero10-traj1'; get it by: hf download "
    "Haozhan72/Openvla-oft-SFT-libero10-traj1 --local-dir Openvla-oft-SFT-libero10-traj1",
    "train quickstart policy.checkpoint=openvla/openvla-7b": "no checkpoint folder 'openvla/openvla-7b', and the "
    "Hugging Face cache holds no model of that id; if it is one, download it first: hf download openvla/openvla-7b",
    "train quickstart policy.checkpoint=tabletop-bse": "no checkpoint folder 'tabletop-bse', did you mean "
    f"'tabletop-base' or 'tabletop-base-flow'?; {PACKAGED}",
    "train quickstart policy.checkpoint=settings.yaml": "'settings.yaml' is a file, not a checkpoint folder; "
    + PACKAGED,
    "train quickstart policy.checkpoint=taken": "taken: this run has saved no policy yet; the same command that began "
    "it goes on",
    "eval": "no checkpoint to evaluate; name a folder, or a checkpoint that ships with Treadle",
    "eval nowhere": f"no checkpoint folder 'nowhere'; {PACKAGED}",
    "eval quickstart": "'quickstart' is a recipe, not a checkpoint; name the run that it made: runs/quickstart",
    "eval takn": "no checkpoint folder 'takn', did you mean 'taken'?; " + PACKAGED,
    "eval runs/one-tow": "no checkpoint folder 'runs/one-tow', did you mean 'runs/one-two'?; the Hugging Face cache "
    "holds no model of that id either",
    "report takn": "takn: no such folder, did you mean 'taken'?; give the folder of a run, as in runs/quickstart",
    "compare takn": f"takn: neither a run nor an evaluation, did you mean 'taken'?; {NO_RESULT}",
    "eval taken": "taken: this run has saved no policy yet; the same command that began it goes on",
    "policy inspect empty": "empty/config.json: missing; the directory has: nothing",
    "train tabletop-base": "recipe 'tabletop-base' is for `treadle sft`, as its demonstrations, grounding, imitation "
    "says; run `treadle sft tabletop-base`",
    "sft quickstart": "recipe 'quickstart' is for `treadle train`, as its algorithm, critic, decisions, iterations, "
    "optimizer says; run `treadle train quickstart`",
    "sft tabletop-base dataset=nowhere checkpoint=tabletop-base": "nowhere is no LeRobot dataset: it has no "
    "meta/info.json",
    "sft tabletop-base checkpoint=nope": f"no checkpoint folder 'nope'; {PACKAGED}",
    "report nowhere": "nowhere: no such folder; give the folder of a run, as in runs/quickstart",
    "report empty": f"empty: neither metrics.jsonl nor a run's config.json is here, {NO_RUN}",
    f"report {shlex.quote(str(CHECKPOINTS / 'tabletop-base'))}": f"{CHECKPOINTS / 'tabletop-base'}: neither "
    f"metrics.jsonl nor a run's config.json is here, {NO_RUN}",
    "compare nowhere": f"nowhere: neither a run nor an evaluation; {NO_RESULT}",
    "compare taken": "found one evaluation to compare; give the folders of several runs or evaluations, or a run that "
    "was evaluated before and after training",
    "eval --reproduce none.json": "none.json: no such file; give the manifest.json that `treadle eval` writes into its "
    "folder, or the file of its --json",
    "plan quickstart --profile none.json": "none.json: cannot be read: No such file or directory",
    "data check nowhere": "nowhere is no LeRobot dataset: it has no meta/info.json",
    "serve tabletop-base-flow --camera front --camera wrist": "--camera: found front, wrist, but the policy sees 1 "
    "camera; give --camera NAME for each, in the order in which the policy sees them",
    "simulators install": "name a simulator, or give --all; those with an environment of their own: libero, maniskill, "
    "robotwin",
}
"""Something else is there, or nothing."""

DESTINATIONS = {
    f"train quickstart {SMALL} output=. name=taken": "'taken' already holds another run (seed is 5 there and 0 here); "
    "choose another with name=..., or resume that run by its own command",
    f"train quickstart {SMALL} output=. name=films": "cannot write 'films/videos': it is not a folder that can be "
    "written; remove it, or choose another run with name=...",
    "train quickstart output=settings.yaml": "cannot write the run folder 'settings.yaml/quickstart': File exists; "
    "choose another with output=...",
    "eval tabletop-base --json .": "cannot write '.': it is a folder; name a file",
    "compare taken --page empty": "cannot write 'empty': it is a folder; name a file",
    "record tabletop-base --output taken": "taken exists and is not an empty folder; choose another, or remove it",
}
"""What would be written over, or cannot be written."""

FOUND_EARLY = {
    "device=gpu": "device 'gpu' cannot be used (torch knows none of that name); choose auto, cpu, cuda or cuda:N",
    "placement.train=99": f"placement.train: found '99', this run has {CORES} core{'s' * (CORES > 1)}, numbered from 0 "
    f"to {CORES - 1}",
    "evaluation.suites=vison": "evaluation.suites: tabletop has no suite 'vison', did you mean 'vision'?; " + SUITES,
    "'evaluation.suites=train vision'": "evaluation.suites: tabletop has no suite 'train vision', did you mean "
    f"'vision'?; {SUITES}",
    "evaluation.horizons.vison=3": "evaluation.horizons: tabletop has no suite 'vison', did you mean 'vision'?; "
    + SUITES,
    "policy.frozen_dimensions=9": "policy.frozen_dimensions: found [9]; allowed are some, not all, of the policy's "
    "action dimensions, 0 to 6",
    "policy.statistics=libero": f"{CHECKPOINTS / 'tabletop-base'}/dataset_statistics.json: no statistics 'libero'; "
    "there are: tabletop",
    "policy.options.chunk=0": "policy.options.chunk: found 0; allowed: greater than 0",
    "algorithm.estimator=nowhere:f": "algorithm.estimator: cannot import 'nowhere:f': No module named 'nowhere'; "
    + FORM,
    "algorithm.loss=treadle.algorithms.losses:nothing": "algorithm.loss: module 'treadle.algorithms.losses' has no "
    "function 'nothing'",
}
"""Known only once policy and simulator are there, and said before anything is played."""

MISTAKES = {
    **SPELLING,
    **VALUES,
    **PLACES,
    **DESTINATIONS,
    **{f"train quickstart {SMALL} {setting}": line for setting, line in FOUND_EARLY.items()},
    "eval tabletop-base --suite vison": FOUND_EARLY["evaluation.suites=vison"],
    f"record tabletop-base {SMALL.rpartition(' ')[0]} --suite vison": "--suite: tabletop has no suite 'vison', did you "
    f"mean 'vision'?; {SUITES}",
    "simulators view tabletop --suite trian": "--suite: tabletop has no suite 'trian', did you mean 'train'?; "
    + SUITES,
    "simulators view tabletop --index 1000000": "--index: found 1000000, allowed is 0 to 999999 in suite 'train'",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run that has begun, one whose films cannot be written, and things that are neither."""
    folder = tmp_path / "here"
    for name in ("empty", "taken/checkpoints", "films", "runs/one-two"):
        (folder / name).mkdir(parents=True)
    config = load_recipe("quickstart", ["name=taken", "seed=5", *SMALL.split()])
    (folder / "taken" / "config.json").write_text(config.model_dump_json())
    (folder / "taken" / "metrics.jsonl").write_text('{"iteration": 1}\n')
    (folder / "films" / "config.json").write_text("{}")
    (folder / "films" / "videos").write_text("a file")
    (folder / "settings.yaml").write_text("seed: 3\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return folder


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_code_2_and_writes_nothing(here: Path, command: str) -> None:
    before = files(here)
    result = CliRunner(env={"COLUMNS": "60", "TERM": "dumb"}).invoke(app, shlex.split(command))
    assert result.stderr == f"error: {MISTAKES[command]}\n"
    assert result.exit_code == 2
    assert files(here) == before


def test_several_mistakes_are_listed_together(here: Path) -> None:
    result = CliRunner().invoke(app, ["train", "quickstart", "seed=x", "gamma=1"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: 2 settings cannot be used",
        '  seed: found "x", allowed is integer >= 0',
        "  unknown key 'gamma', did you mean 'algorithm.gamma'?",
    ]
