"""What a scenario asks for, from the templates that come with RoboTwin's package.

RoboTwin words an instruction once a scene stands. Here it is part of a scenario's identity, so templates are taken that
need nothing of the scene: those that name no arm; an object that differs from scene to scene is called by its kind.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from treadle.simulators.robotwin.tasks import Thing, package_folder, task_source, things_named

Wording = Literal["seen", "unseen"]
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@cache
def templates(task: str, wording: Wording) -> tuple[str, ...]:
    """Templates of a task that need nothing of the scene."""
    described = _described("task_instruction", task)
    return usable(described[wording], _things(task), described["full_description"])


def usable(found: Sequence[str], things: Mapping[str, Thing | None], description: str) -> tuple[str, ...]:
    """Those of the templates found that name every object, and nothing that only the scene can tell; the description of
    the task where there are none.
    """
    objects = {name for name in things if name.isupper()}
    known = {name for name, thing in things.items() if thing is not None}
    kept = [text for text in found if objects == set(_PLACEHOLDER.findall(text)) and objects <= known]
    return tuple(kept) or (re.sub(r"[<>]", "", description),)


def word(task: str, wording: Wording, rng: np.random.Generator) -> str:
    """An instruction of a task, drawn with `rng`."""
    things = _things(task)
    text = str(rng.choice(np.array(templates(task, wording), dtype=object)))
    for name in dict.fromkeys(_PLACEHOLDER.findall(text)):
        thing = things[name]
        assert thing is not None
        said = str(rng.choice(np.array(_names(thing, wording), dtype=object)))
        # Some templates have the article already.
        text = text.replace(f"the {{{name}}}", f"the {said}").replace(f"{{{name}}}", f"the {said}")
    return text


@cache
def _things(task: str) -> Mapping[str, Thing | None]:
    return things_named(task_source(task))


@cache
def _names(thing: Thing, wording: Wording) -> tuple[str, ...]:
    if thing.model is None:
        folder = package_folder() / "description" / "objects_description" / thing.folder
        return (json.loads(min(folder.glob("base*.json")).read_text(encoding="utf-8"))["raw_description"],)
    described = _described("objects_description", f"{thing.folder}/base{thing.model}")
    return tuple(described.get(wording) or described["seen"])


def _described(kind: str, name: str) -> dict[str, Any]:
    path: Path = package_folder() / "description" / kind / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))
