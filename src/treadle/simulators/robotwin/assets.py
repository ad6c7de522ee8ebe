"""Whether the assets that a run needs are there, file by file, before anything starts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from treadle.errors import ConfigError
from treadle.simulators.robotwin.tasks import objects_used

_DOWNLOAD = "robotwin-download-assets --output FOLDER, a program of RoboTwin's environment"
_SHOWN = 12


def check_assets(root: Path, sources: Sequence[str], embodiments: Sequence[str], *, randomized: bool) -> None:
    """Whether what tasks of these sources need lies below `root`.

    Args:
        root: the folder that holds `assets`.
        sources: of the tasks' modules.
        embodiments: names of the arms.
        randomized: backgrounds and clutter are drawn too.

    Raises:
        ConfigError: something is missing; names it, file by file, and where it comes from.
    """
    missing = list(dict.fromkeys(missing_assets(root, sources, embodiments, randomized=randomized)))
    if missing:
        names = "".join(f"\n  {path}" for path in missing[:_SHOWN])
        more = f"\n  and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ConfigError(
            f"simulator.options.assets: {len(missing)} missing below {root}:{names}{more}\n"
            f"get RoboTwin's assets with {_DOWNLOAD}; or play the built-in ones with assets 'miniature'"
        )


def missing_assets(
    root: Path, sources: Sequence[str], embodiments: Sequence[str], *, randomized: bool
) -> Iterator[Path]:
    """Files and folders that are not there; where a file may have one of several names, the first of them."""
    for name in dict.fromkeys(embodiments):
        yield from _embodiment(root / "assets" / "embodiments" / name)
    for source in sources:
        for folder, models in objects_used(source).items():
            yield from _object(root / "assets" / "objects" / folder, models)
    if randomized:
        yield from _absent(root / "assets" / "background_texture" / "unseen" / "0.png")


def _embodiment(folder: Path) -> Iterator[Path]:
    import yaml

    yield from _absent(folder / "config.yml", folder / "curobo_left_tmp.yml", folder / "curobo_right_tmp.yml")
    if not (folder / "config.yml").is_file():
        return
    config = yaml.safe_load((folder / "config.yml").read_text(encoding="utf-8"))
    named = [folder / config[key] for key in ("urdf_path", "srdf_path") if config.get(key)]
    yield from _absent(*named)
    urdf = folder / config["urdf_path"]
    if urdf.is_file():
        meshes = [mesh.get("filename", "") for mesh in ElementTree.parse(urdf).iter("mesh")]  # noqa: S314 - own files
        # Where a package lies is the loader's to say.
        yield from _absent(*(urdf.parent / mesh for mesh in dict.fromkeys(meshes) if "://" not in mesh))


def _object(folder: Path, models: set[int]) -> Iterator[Path]:
    if not folder.is_dir():
        yield folder
        return
    for model in sorted(models):
        yield from _absent(folder / f"model_data{model}.json")
        names = (f"base{model}.glb", f"textured{model}.obj")
        shapes = [folder / part / name for part in ("", "visual", "collision") for name in names]
        if not any(path.is_file() for path in shapes):
            yield shapes[0]
    if not models and not any(path.is_file() for path in folder.rglob("*")):
        yield folder


def _absent(*paths: Path) -> Iterator[Path]:
    yield from (path for path in paths if not path.is_file())
