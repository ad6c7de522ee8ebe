"""The folder of objects, plates, tables and the arm: the published one where the user has it, or one that is generated.

Both have one layout, so that one loader reads them:

    more_carrot/model_db.json, more_carrot/NAME/{collision.obj, textured.obj|dae|glb}    25 objects
    more_plate/...                                                                       17 plates
    more_table/model_db.json, more_table/imgs/*, more_table/textures/*                   21 tables and their textures
    robots/widowx/wx250s.urdf                                                            the arm, published alone
    tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v1.glb                        the table; a box where missing
"""

import json
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from treadle.environments.environment import environments_folder, find_environment
from treadle.errors import SimulatorError
from treadle.simulators.maniskill.put_on_plate.settings import OBJECTS, PLATES, TABLES
from treadle.simulators.maniskill.task import NAME

ARM = Path("robots/widowx/wx250s.urdf")
ARM_OF_BOXES = Path(__file__).with_name("wx250s.urdf")
"""The arm of the generated set: the same kinematics, without meshes."""
STAGE = Path("tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v1.glb")
_DOWNLOADS = ("widowx250s", "bridge_v2_real2sim")
"""What ManiSkill calls arm and stage; its command takes one at a time."""
_VISUALS = ("textured.obj", "textured.dae", "textured.glb")


@dataclass(frozen=True, slots=True)
class Thing:
    """An object or a plate."""

    words: str
    """As an instruction names it."""
    collision: Path
    visual: Path
    size: tuple[float, float, float]
    """Metres along its own axes, scaled."""
    scale: float
    density: float
    """Kilograms per cubic metre."""


@dataclass(frozen=True, slots=True)
class Table:
    """A photo, or a painting, of a table, and the texture that goes with it."""

    image: Path
    texture: Path
    mix: float
    """How much of the texture is blended in, before the setting's strength."""


@dataclass(frozen=True, slots=True)
class Assets:
    """Everything that the scenes are made of."""

    objects: tuple[Thing, ...]
    plates: tuple[Thing, ...]
    tables: tuple[Table, ...]
    arm: Path
    stage: Path | None
    """A mesh of the table; None for a plain box."""


def published(folder: Path) -> Assets:
    """The published set in `folder` or its subfolder `carrot`; arm and stage may also lie where ManiSkill downloads
    them to (`$MS_ASSET_DIR/data`, else `~/.maniskill/data`).

    Raises:
        SimulatorError: files are missing; names them.
    """
    root = folder / "carrot" if (folder / "carrot").is_dir() else folder
    downloads = Path(os.environ.get("MS_ASSET_DIR") or Path.home() / ".maniskill") / "data"
    arm, stage = (
        next((base / file for base in (folder, root, downloads) if (base / file).exists()), folder / file)
        for file in (ARM, STAGE)
    )
    return _checked(_read(root, arm, stage))


def generated(folder: Path) -> Assets:
    """The generated set, made in `folder` at the first call."""
    from treadle.simulators.maniskill.put_on_plate.generate import generate

    if not folder.exists():
        generate(folder)
    return _checked(_read(folder, ARM_OF_BOXES, None))


def generated_folder() -> Path:
    """Where the generated set lies: beside the environments, by the revision of what generates it."""
    from treadle.simulators.maniskill.put_on_plate.generate import REVISION

    return environments_folder().parent / "assets" / f"put-on-plate-{REVISION}"


def words(assets: Assets | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How objects and plates are called. None is the generated set, made or not."""
    from treadle.simulators.maniskill.put_on_plate.generate import OBJECT_SHAPES, PLATE_SHAPES

    objects, plates = (assets.objects, assets.plates) if assets else (OBJECT_SHAPES, PLATE_SHAPES)
    return tuple(thing.words for thing in objects), tuple(plate.words for plate in plates)


def _read(root: Path, arm: Path, stage: Path | None) -> Assets:
    tables = [
        Table(root / "more_table/imgs" / name, root / "more_table/textures" / entry["texture"], float(entry["mix"]))
        for name, entry in _list(root / "more_table").items()
    ]
    return Assets(_things(root / "more_carrot"), _things(root / "more_plate"), tuple(tables), arm, stage)


def _list(folder: Path) -> dict[str, Any]:
    file = folder / "model_db.json"
    if not file.exists():
        raise SimulatorError(f"put-on-plate: {file} is missing; {_fix()}")
    return json.loads(file.read_text())


def _things(folder: Path) -> tuple[Thing, ...]:
    things: list[Thing] = []
    for name, entry in _list(folder).items():
        scale = float(entry.get("scale", [1.0])[0])
        low, high = entry["bbox"]["min"], entry["bbox"]["max"]
        found = [folder / name / file for file in _VISUALS if (folder / name / file).exists()]
        things.append(
            Thing(
                words=entry["name"],
                collision=folder / name / "collision.obj",
                visual=(found or [folder / name / _VISUALS[0]])[0],
                size=tuple((b - a) * scale for a, b in zip(low, high, strict=True)),  # type: ignore[arg-type]
                scale=scale,
                density=float(entry.get("density", 1000)),
            )
        )
    return tuple(things)


def _checked(assets: Assets) -> Assets:
    for kind, count in {"objects": OBJECTS, "plates": PLATES, "tables": TABLES}.items():
        found = len(getattr(assets, kind))
        if found != count:
            raise SimulatorError(f"put-on-plate: found {found} {kind} in the asset folder, needs {count}; {_fix()}")
    files = [file for thing in (*assets.objects, *assets.plates) for file in (thing.collision, thing.visual)]
    files += [file for table in assets.tables for file in (table.image, table.texture)]
    files += [assets.arm, *([assets.stage] if assets.stage else [])]
    if missing := [file for file in files if not file.exists()]:
        shown = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise SimulatorError(f"put-on-plate: missing {shown}; {_fix()}")
    return assets


def _fix() -> str:
    """What to do, with commands for the interpreter that has ManiSkill."""
    python = sys.executable
    if find_spec("mani_skill") is None:
        environment = find_environment(NAME, "treadle.simulators.maniskill:ManiSkill")
        assert environment is not None
        python = str(environment.executable)
    commands = [f"`{python} -m mani_skill.utils.download_asset -y {uid}`" for uid in _DOWNLOADS]
    return (
        "name the published folder (it holds more_carrot, more_plate and more_table) in simulator.options.assets; the "
        f"arm and the stage come by {' and '.join(commands)}. Leave simulator.options.assets empty for the generated "
        "set, or delete that set's folder to have it made again"
    )
