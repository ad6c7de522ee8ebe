"""The public entry: any policy from its directory."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from treadle.policies.protocol import Policy

DTYPES = ("float32", "bfloat16", "float16")


def load_policy(
    directory: str | Path, *, device: str = "auto", dtype: str = "auto", statistics: str | None = None, **overrides: Any
) -> "Policy":
    """Load a policy from a Hugging Face directory in the published layout.

    `device` "auto" is a GPU if there is one; `dtype` "auto" is that of the file. `statistics` is the data set whose
    statistics scale actions; None where there is one only. `overrides`: fields of the policy's config that its
    directory lacks or has otherwise, such as `chunk` or `prompt_length`. Raises CheckpointError.
    """
    import torch

    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype: {dtype!r}; allowed: auto, {', '.join(DTYPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = Path(directory)
    return _loader(folder)(
        folder,
        device=torch.device(device),
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        statistics=statistics,
        **overrides,
    )


def _loader(directory: Path) -> "Callable[..., Policy]":
    from treadle.policies import checkpoint, openvla_oft

    model_type = checkpoint.read_json(directory / checkpoint.CONFIG).get("model_type")
    loaders = {"openvla": openvla_oft.load}
    if model_type not in loaders:
        raise CheckpointError(
            f"{directory / checkpoint.CONFIG}: model_type {model_type!r}; known: {', '.join(sorted(loaders))}"
        )
    return loaders[model_type]
