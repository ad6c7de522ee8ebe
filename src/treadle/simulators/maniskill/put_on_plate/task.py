# OpenCV is in ManiSkill's own environment.
# pyright: reportMissingImports=false

"""The task as the simulator uses it: suites, scenarios and wordings; the environment and its pictures."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from treadle.data.scenario import Scenario, Split
from treadle.errors import SimulatorError
from treadle.simulators.checks import check_suite
from treadle.simulators.enumeration import Enumeration
from treadle.simulators.maniskill.put_on_plate import assets
from treadle.simulators.maniskill.put_on_plate.settings import PHRASES, SETTINGS, Drops, Layout, axes
from treadle.simulators.maniskill.task import NAME

PUT_ON_PLATE = "PutOnPlateInScene25"
Episodes = Literal["enumerated", "drawn"]
DRAWN = 4096
"""Episodes of a setting that are drawn."""
_CAMERA = "3rd_view_camera"


class PutOnPlateTask:
    """Put the named object on the named plate."""

    name = PUT_ON_PLATE
    cameras: tuple[str, ...] = (_CAMERA,)
    control_hz = 5.0
    state_dim = 53
    scale = (1.0, 1.0)
    segmentation = True
    success_bonus = 0.0
    camera_size: tuple[int, int] | None = (480, 640)

    def __init__(self, folder: Path | None, episodes: Episodes = "enumerated", drops: Drops = "rl4vla") -> None:
        """`folder` holds the published assets; None takes generated ones. Raises SimulatorError for missing files."""
        self._published = None if folder is None else assets.published(folder)
        self._drawn = episodes == "drawn"
        self._drops: Drops = drops
        self._words = assets.words(self._published)

    def suites(self) -> tuple[str, ...]:
        """The settings, and the axes that are their unions."""
        return (*SETTINGS, *axes())

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """Every episode of a suite; an axis takes its settings in turn, as long as all of them have episodes. Where
        episodes are drawn, both splits have the same.
        """
        check_suite(f"{NAME}: task {self.name}", suite, split, self.suites())
        members = axes().get(suite, (suite,))
        each = DRAWN if self._drawn else min(SETTINGS[name].episodes(split) for name in members)

        def make(index: int) -> Scenario:
            place, member = divmod(index, len(members))
            name = members[member]
            return Scenario(NAME, name, self.name, split, place, self._instruction(self._layout(name, split, place)))

        return Enumeration(each * len(members), make)

    def layout(self, scenario: Scenario) -> Layout:
        """What a scenario is made of."""
        return self._layout(scenario.suite, scenario.split, scenario.index)

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """The scenario's own, and where a second object or plate is there, the one that asks for it."""
        layout = self.layout(scenario)
        if layout.effect not in ("object", "plate"):
            return (scenario.instruction,)
        other = replace(layout, **{layout.effect: layout.other})
        return (scenario.instruction, self._instruction(other))

    def vocabulary(self) -> Sequence[str]:
        """All wordings, objects and plates."""
        return [phrase.format(object="", plate="") for phrase in PHRASES] + [*self._words[0], *self._words[1]]

    def make(self, rows: int, image_size: int, settings: dict[str, Any]) -> Any:
        """Scenes with all objects and plates, and the camera of BridgeData at its 640 x 480 pixels."""
        import gymnasium

        from treadle.simulators.maniskill.put_on_plate.environment import CONTROL, ENVIRONMENT

        return gymnasium.make(
            ENVIRONMENT,
            assets=self._assets,
            num_envs=rows,
            reward_mode="none",
            control_mode=CONTROL,
            # As published; ManiSkill's own rounds colours otherwise, and lights them a little more brightly.
            sensor_configs={"shader_pack": "default"},
            **{"obs_mode": "state_dict", **settings},
        ).unwrapped

    def start(self, scenario: Scenario) -> tuple[int, dict[str, Any]]:
        """Everything is in the layout; the seed decides nothing."""
        return 0, {"layout": self.layout(scenario)}

    def score(self, environment: Any, seen: dict[str, Any], action: Any, info: dict[str, Any]) -> Any:
        """As `rules.score`, whose differences are the published reward."""
        return info["score"]

    def picture(self, environment: Any, textures: dict[str, Any], size: int | None) -> Any:
        """Before the table's photo, with the setting's texture, at the size of the policy's frame."""
        import torch

        from treadle.simulators.maniskill.put_on_plate.overlay import blend, compose, finish, shrink

        frames, labels = textures["rgb"].float(), textures["segmentation"][..., 0]
        fronts = torch.isin(labels.int(), environment.foreground.to(labels.device))
        images = []
        for row, (frame, front) in enumerate(zip(frames, fronts, strict=True)):
            layout = environment.layouts[row]
            height, width = front.shape
            photo = _image(self._assets.tables[layout.table].image, height, width, frame.device)
            image = compose(frame, front, photo)
            if layout.effect in ("texture", "whole"):
                table = self._assets.tables[layout.texture]
                times = 2 if layout.effect == "whole" else 1
                texture = _image(table.texture, times * height, times * width, frame.device)
                image = blend(image, front, texture, layout.strength * table.mix, layout.effect)
            images.append(image)
        finished = finish(torch.stack(images))
        return finished if size is None else shrink(finished, size)

    def _layout(self, name: str, split: Split, index: int) -> Layout:
        setting = SETTINGS[name]
        if self._drawn:
            return setting.published_layout(drawn_numbers(setting.length)[index], self._drops)
        return setting.layout(setting.number(split, index), self._drops)

    @cached_property
    def _assets(self) -> assets.Assets:
        return self._published or assets.generated(assets.generated_folder())

    def _instruction(self, layout: Layout) -> str:
        return PHRASES[layout.phrase].format(object=self._words[0][layout.object], plate=self._words[1][layout.plate])


@cache
def drawn_numbers(length: int) -> list[int]:
    """[DRAWN] numbers of episodes as RLinf draws them for environments of one process and seed 0. Where more
    environments are drawn, the first ones stay the same.
    """
    import torch

    return torch.randint(0, length, (DRAWN,), generator=torch.Generator().manual_seed(0)).tolist()


@cache
def _image(file: Path, height: int, width: int, device: Any) -> Any:
    """A picture of the assets as floats [height, width, 3], read and resized by OpenCV, as the published environments
    do. Raises SimulatorError for a file that is no picture.
    """
    import cv2
    import torch

    read = cv2.imread(str(file))
    if read is None:
        raise SimulatorError(f"put-on-plate: {file} is no picture that OpenCV reads; put the published file there")
    resized = cv2.resize(cv2.cvtColor(read, cv2.COLOR_BGR2RGB), (width, height))
    return torch.as_tensor(resized, dtype=torch.float32, device=device)
