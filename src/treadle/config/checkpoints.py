"""Where a checkpoint is, from what people write: a packaged name, a folder, a run, or an id of the Hugging Face hub."""

import re
from pathlib import Path

from treadle.config.named_files import read_extended, recipe_files
from treadle.errors import CheckpointError, did_you_mean, did_you_mean_folder
from treadle.reading import check_path

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
"""Those that ship with the package."""
_HUB = re.compile(r"\w[\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)


def checkpoints() -> list[str]:
    """Names of the packaged checkpoints."""
    return sorted(path.name for path in CHECKPOINTS.glob("*") if path.is_dir()) if CHECKPOINTS.is_dir() else []


def resolve_checkpoint(name: str, source: str = "") -> Path:
    """The folder of a policy: a packaged checkpoint's name; a folder; a run, or a checkpoint of one, for the policy in
    it; or `OWNER/NAME` of the Hugging Face hub, where its cache has it. Nothing is downloaded.

    Raises CheckpointError where there is none, with the command that makes or downloads it where that is known;
    `source` is where a recipe says that the hub has it.
    """
    packaged = checkpoints()
    if name in packaged:
        return CHECKPOINTS / name
    path = check_path(name, "checkpoint", CheckpointError)
    if path.is_dir():
        return _policy_of(path)
    if path.exists():
        raise CheckpointError(f"{name!r} is a file, not a checkpoint folder; packaged: {', '.join(packaged)}")
    if source:
        raise CheckpointError(f"no checkpoint folder {name!r}; get it by: hf download {source} --local-dir {name}")
    if (maker := _maker(path)) is not None:
        raise CheckpointError(f"no checkpoint folder {name!r}; make it with: {maker}")
    near = did_you_mean(name, packaged) or did_you_mean_folder(path)
    if _HUB.fullmatch(name):
        return _of_hub(name, near)
    if name in (recipes := recipe_files()):
        raise CheckpointError(
            f"{name!r} is a recipe, not a checkpoint; name the run that it made: {_folder(recipes[name])}"
        )
    raise CheckpointError(f"no checkpoint folder {name!r}{near}; packaged: {', '.join(packaged) or 'none'}")


def _policy_of(path: Path) -> Path:
    """The policy in the folder of a run or of a checkpoint; any other folder is a policy's own."""
    if (path / "policy").is_dir():
        return path / "policy"
    saved = sorted((path / "checkpoints").glob("iteration-*/policy"))
    if saved:
        return saved[-1]
    if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").exists():
        raise CheckpointError(f"{path}: this run has saved no policy yet; the same command that began it goes on")
    return path


def _maker(path: Path) -> str | None:
    """The command whose run leaves this policy, where a recipe says so."""
    if path.name != "policy":
        return None
    for name, file in recipe_files().items():
        if path == _folder(file) / "policy":
            recipe = read_extended(file)
            return f"treadle {'sft' if 'demonstrations' in recipe or 'imitation' in recipe else 'train'} {name}"
    return None


def _folder(recipe: Path) -> Path:
    """The folder of a recipe's run."""
    settings = read_extended(recipe)
    return Path(str(settings.get("output", "runs"))) / str(settings.get("name", "run"))


def _of_hub(name: str, near: str) -> Path:
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType] (overloads of dictionaries)
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        if near:
            what = f"{near}; the Hugging Face cache holds no model of that id either"
        else:
            what = (
                ", and the Hugging Face cache holds no model of that id; if it is one, download it first: hf download "
                f"{name}"
            )
        raise CheckpointError(f"no checkpoint folder {name!r}{what}") from error
