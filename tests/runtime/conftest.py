from pathlib import Path

import pytest

from miniature import run_config
from treadle.config.schema import CollectionConfig, EvaluationConfig, TrainConfig
from treadle.runtime.loop import train


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[TrainConfig, Path]:
    """Four iterations in one go, with evaluation and a video."""
    evaluation = EvaluationConfig(suites=("train", "vision"), episodes=4, slots=3, videos=1)
    lanes = CollectionConfig(lanes=2)
    config = run_config(tmp_path_factory.mktemp("whole"), checkpoint, evaluation=evaluation, collection=lanes)
    return config, train(config)
