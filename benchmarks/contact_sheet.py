"""One frame of every suite of a simulator: `python -m benchmarks.contact_sheet FILE NAME[:KEY=VALUE,...] ...`.

Each is the first evaluation scenario of a suite, as the policy sees it at its start; cameras stand side by side. An
argument like `maniskill:task=PutOnPlateInScene25,image_size=224` sets options of the simulator; several go on one
sheet.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.elsewhere import open_simulator
from treadle.config.schema import SimulatorConfig
from treadle.errors import TreadleError

TILE, LABEL, COLUMNS = 132, 14, 6


def tiles(word: str) -> list[tuple[str, Image.Image]]:
    """A label and a picture for each suite with scenarios of its own."""
    name, _, given = word.partition(":")
    options = dict(part.split("=", 1) for part in given.split(",") if part)
    sizes = {key: int(value) if value.isdigit() else value for key, value in options.items()}
    simulator = open_simulator(SimulatorConfig(name=name, slots=1, options=sizes))
    try:
        slot, found = np.arange(1), {}
        seen = simulator.spec.observation(1)
        for suite in simulator.suites():
            scenario = simulator.scenarios(suite, "evaluation")[0]
            if scenario.suite in found:  # the union of other suites
                continue
            simulator.reset(slot, [scenario])
            simulator.observe(slot, seen)
            picture = Image.fromarray(np.concatenate(list(seen.frames[0]), 1))
            height = TILE
            found[scenario.suite] = picture.resize((height * picture.width // picture.height, height))
        alone = len(found) == 1
        return [(options.get("task", name) if alone else suite, picture) for suite, picture in found.items()]
    finally:
        simulator.close()


def main(arguments: list[str]) -> int:
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        found = [tile for word in arguments[1:] for tile in tiles(word)]
    except TreadleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    width = max(picture.width for _, picture in found)
    rows = -(-len(found) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + 4), rows * (TILE + LABEL + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (label, picture) in enumerate(found):
        x, y = place % COLUMNS * (width + 4), place // COLUMNS * (TILE + LABEL + 4)
        sheet.paste(picture, (x, y + LABEL))
        draw.text((x + 2, y + 1), label, fill="black")
    file = Path(arguments[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    # Grain below four levels costs space and shows nothing.
    sheet.point([level & ~3 for level in range(256)] * 3).save(file, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
