"""What scenes ask for, without RoboTwin: its package's own drawing is stood in for."""

import sys
from types import ModuleType

import pytest

from treadle.simulators.robotwin import instructions


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):
    """What the stand-in was asked; it finds nothing to say where a scene says nothing."""
    calls = []

    def generate(task, episodes, count, seed):
        calls.append((task, list(episodes), count, seed))
        (facts,) = episodes
        return [{"seen": [f"Lift with the {facts['{a}']} arm."], "unseen": []}] if facts else []

    module = ModuleType("robotwin.description")
    module.generate_episode_descriptions = generate
    monkeypatch.setitem(sys.modules, "robotwin", ModuleType("robotwin"))
    monkeypatch.setitem(sys.modules, "robotwin.description", module)
    return calls


def test_the_package_words_what_a_scene_says_of_itself(package, asked):
    facts = {"{A}": "020_hammer/base0", "{a}": "left"}
    assert instructions.word("beat_block_hammer", "seen", facts, 100007) == "Lift with the left arm."
    # One text, drawn with the scene's seed, as in the published runs.
    assert asked == [("beat_block_hammer", [facts], 1, 100007)]


@pytest.mark.parametrize(("wording", "facts"), [("unseen", {"{a}": "left"}), ("seen", {})])
def test_where_no_template_fits_the_task_is_described(package, asked, wording, facts):
    described = instructions.word("beat_block_hammer", wording, facts, 0)
    assert described == "use the arm to grab the hammer and beat the block"
