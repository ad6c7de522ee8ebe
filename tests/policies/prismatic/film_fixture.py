"""The official checkpoint with FiLM as a published directory."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).parents[2] / "fixtures"
SOURCE = FIXTURES / "openvla_oft_film"
FILM_FILE = "vision_backbone--12345_checkpoint.pt"
VOCABULARY, ACTIONS = 32064, slice(31744, 32000)


@dataclass(frozen=True)
class FilmFixture:
    """The directory, and what the official code computes from it."""

    directory: Path
    prompt: str
    arrays: dict[str, NDArray[Any]]

    def frames(self) -> list[NDArray[np.uint8]]:
        return [self.arrays[f"img_{camera}"][None] for camera in range(3)]


def read_film_fixture(directory: Path) -> FilmFixture:
    """Write the published directory, and read what is expected of it."""
    directory.mkdir()
    for path in SOURCE.iterdir():
        if path.suffix == ".pt" or path.name.endswith("config.json") or path.name.startswith("dataset"):
            shutil.copyfile(path, directory / path.name)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(FIXTURES / "openvla_oft_tiny" / name, directory / name)
    facts = json.loads((SOURCE / "expected.json").read_text())
    weights = load_file(SOURCE / "weights.safetensors")
    for name, rows, place in (
        ("language_model.model.embed_tokens.weight", weights.pop("embedding_rows"), facts["embedding_ids"]),
        ("language_model.lm_head.weight", weights.pop("head_rows"), ACTIONS),
    ):
        weights[name] = torch.zeros(VOCABULARY, rows.shape[1])
        weights[name][place] = rows
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with np.load(SOURCE / "expected.npz") as archive:
        return FilmFixture(directory, facts["prompt"], {name: archive[name] for name in archive.files})
