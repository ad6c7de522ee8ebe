"""The green screen and the textures, on small pictures."""

import pytest

torch = pytest.importorskip("torch")

from treadle.simulators.maniskill.put_on_plate.overlay import blend, compose, finish, shrink  # noqa: E402

FRONT = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()


def plain(value, height=4, width=4):
    return torch.full((height, width, 3), float(value))


def test_the_photo_is_behind():
    image = compose(plain(10), FRONT, plain(90))
    assert (image[FRONT] == 10).all()
    assert (image[~FRONT] == 90).all()


def test_a_texture_lies_on_arm_and_things_alone():
    image = blend(compose(plain(10), FRONT, plain(90)), FRONT, plain(110), 0.3, "texture")
    assert torch.allclose(image[FRONT], torch.tensor(0.3 * 110 + 0.7 * 10))
    assert (image[~FRONT] == 90).all()


def test_a_texture_lies_on_the_whole_image():
    image = blend(plain(50), FRONT, plain(100, 8, 8), 0.5, "whole")
    assert (image == 75).all()


def test_the_window_follows_the_arm():
    texture = plain(0, 8, 8)
    texture[1, 1] = 100  # the box of FRONT is from 1 to 2, its middle 1
    assert blend(plain(0), FRONT, texture, 0.5, "whole")[0, 0, 0] == 50


def test_nothing_in_front_or_no_share_changes_nothing():
    assert (blend(plain(50), torch.zeros_like(FRONT), plain(9), 0.5, "texture") == 50).all()
    assert (blend(plain(50), FRONT, plain(9, 8, 8), 0.0, "whole") == 50).all()


def test_fractions_are_cut_off():
    image = plain(0.3 * 110 + 0.7 * 11)  # 40.7
    assert (finish(image[None]) == 40).all()
    assert (finish(plain(300)[None]) == 255).all()


def test_shrinking_averages():
    image = plain(0).to(torch.uint8)
    image[:, 2:] = 200
    small = shrink(image[None], 2)
    assert small.dtype == torch.uint8
    assert small.shape == (1, 2, 2, 3)
    assert small[0, 0, 0, 0] < 40
    assert small[0, 0, 1, 0] > 160
    assert (shrink(image[None], 4) == image).all()
