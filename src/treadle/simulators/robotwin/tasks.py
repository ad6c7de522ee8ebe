"""RoboTwin's tasks, and what their sources say about the assets and the things that they use.

Sources are read, not run, so that nothing of RoboTwin need be imported.
"""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

from treadle.errors import SimulatorError

HORIZONS = {
    "rlinf": {
        "beat_block_hammer": 200,
        "handover_block": 400,
        "lift_pot": 200,
        "move_can_pot": 200,
        "pick_dual_bottles": 100,
        "place_container_plate": 200,
        "place_empty_cup": 200,
    },
    "simplevla-rl": dict.fromkeys(
        (
            *("beat_block_hammer", "click_bell", "handover_mic", "lift_pot", "move_can_pot", "move_pillbottle_pad"),
            *("move_stapler_pad", "place_a2b_left", "place_a2b_right", "place_empty_cup", "place_mouse_pad"),
            "place_phone_stand",
        ),
        200,
    )
    | {
        "blocks_ranking_rgb": 600,
        "handover_block": 400,
        "pick_dual_bottles": 100,
        "place_container_plate": 150,
        "place_shoe": 250,
        "put_bottles_dustbin": 800,
        "shake_bottle": 75,
        "stack_blocks_two": 400,
        "stack_bowls_two": 400,
    },
}
"""Control steps of an episode in the published runs, by who published them. SimpleVLA-RL has 800 for other tasks."""

TASKS = tuple(sorted(HORIZONS["rlinf"] | dict.fromkeys((
    "adjust_bottle", "blocks_ranking_rgb", "blocks_ranking_size", "click_alarmclock", "click_bell", "dump_bin_bigbin",
    "grab_roller", "handover_mic", "hanging_mug", "move_pillbottle_pad", "move_playingcard_away", "move_stapler_pad",
    "open_laptop", "open_microwave", "pick_diverse_bottles", "place_a2b_left", "place_a2b_right", "place_bread_basket",
    "place_bread_skillet", "place_burger_fries", "place_can_basket", "place_cans_plasticbox", "place_dual_shoes",
    "place_fan", "place_mouse_pad", "place_object_basket", "place_object_scale", "place_object_stand",
    "place_phone_stand", "place_shoe", "press_stapler", "put_bottles_dustbin", "put_object_cabinet", "rotate_qrcode",
    "scan_object", "shake_bottle", "shake_bottle_horizontally", "stack_blocks_three", "stack_blocks_two",
    "stack_bowls_three", "stack_bowls_two", "stamp_seal", "turn_switch",
), 0)))  # fmt: skip
"""All fifty."""

_OBJECT = re.compile(r"\d{3}_[\w-]+")


def package_folder() -> Path:
    """Where the package `robotwin` lies. Raises SimulatorError where it is not installed."""
    spec = find_spec("robotwin")
    if spec is None or not spec.submodule_search_locations:
        raise SimulatorError("robotwin: its package is not installed here; run: treadle simulators install robotwin")
    return Path(spec.submodule_search_locations[0])


def task_source(task: str) -> str:
    """The source of a task's module."""
    return (package_folder() / "envs" / f"{task}.py").read_text(encoding="utf-8")


def objects_used(source: str) -> dict[str, set[int]]:
    """Folders of objects that a task's source names, each with the models that it names by number."""
    tree = ast.parse(source)
    used: dict[str, set[int]] = {
        found[0]: set()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        and (found := _OBJECT.match(node.value))
    }  # fmt: skip
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        name, model = given.get("modelname"), given.get("model_id")
        if isinstance(name, ast.Constant) and isinstance(model, ast.Constant) and isinstance(model.value, int):
            used.setdefault(str(name.value), set()).add(model.value)
    return used
