"""Profiles as files."""

import json
from pathlib import Path

import pytest

from treadle.errors import ConfigError
from treadle.runtime.planning.profile import Affine, Profile, plain, read_profile, write_profile

PROFILE = Profile(
    "two cores",
    {1: Affine(0.1, 0.2), 2: Affine(0.1, 0.1)},
    {1: Affine(0.3, 0.4)},
    {1: Affine(0.5, 0.6)},
    (1.0, 0.5),
    0.01,
    0.3,
    1.2,
    "host",
    ("nothing renders",),
)


def test_a_profile_survives_its_file(tmp_path: Path):
    write_profile(tmp_path / "profile.json", PROFILE)
    assert read_profile(tmp_path / "profile.json") == PROFILE
    assert PROFILE.cost("simulate", 3) == PROFILE.cost("simulate", 2) == Affine(0.1, 0.1)
    assert [PROFILE.share_playing(t) for t in range(3)] == [1.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learn", [], "learn"),
        ("learn", [{"devices": 1, "fixed": -1.0, "each": 0.0}], "fixed"),
        ("playing", [1.5], "playing"),
        ("simulates_on", "moon", "simulates_on"),
        ("speed", 3, "speed"),
    ],
)
def test_what_is_no_profile_is_named(tmp_path: Path, key: str, value: object, said: str):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(plain(PROFILE) | {key: value}))
    with pytest.raises(ConfigError, match=f"profile.json.*{said}"):
        read_profile(path)
