from pathlib import Path

import av

from treadle.simulators.tabletop.viewer import record_expert


def test_a_video_of_the_expert_is_written(tmp_path: Path):
    assert all(record_expert(tmp_path / "expert.mp4", episodes=1, size=64))
    with av.open(str(tmp_path / "expert.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) > 12
