"""What a scene asks for, in the words of RoboTwin's package.

RoboTwin words an instruction once a scene stands: it may name the arm to use, or the very object that was drawn.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Literal

from treadle.simulators.robotwin.tasks import package_folder

Wording = Literal["seen", "unseen"]
"""Templates and names that training uses, or those that it never uses."""
Facts = Mapping[str, str]
"""What a scene says of itself: `{A}` is the description of an object, `{a}` an arm, `left` or `right`."""


def describe(task: str) -> str:
    """A task in words that need no scene."""
    path = package_folder() / "description" / "task_instruction" / f"{task}.json"
    return re.sub(r"[<>]", "", json.loads(path.read_text(encoding="utf-8"))["full_description"])


def word(task: str, wording: Wording, facts: Facts, seed: int) -> str:
    """The instruction of a scene with this seed, as RLinf's and SimpleVLA-RL's runs draw it. Where no template fits the
    facts, it is the task's description.
    """
    generate: Callable[[str, Sequence[Facts], int, int], list[dict[str, list[str]]]]
    generate = import_module("robotwin.description").generate_episode_descriptions
    drawn = generate(task, [facts], 1, seed)
    texts = drawn[0][wording] if drawn else []
    return texts[0] if texts else describe(task)
