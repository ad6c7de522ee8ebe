"""The public entry: any policy from its directory."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from treadle.policies.protocol import Policy

DTYPES = ("float32", "bfloat16", "float16")

KINDS = {"openvla_oft": "treadle.policies.openvla_oft", "openvla": "treadle.policies.openvla"}
"""Modules of the policies, each with `load`, and with `recognizes` for directories that do not name their policy: the
first that recognises one has it. Those that can be made from nothing have `create`, `tiny_config` and `sized_config`.
"""


def load_policy(
    directory: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    statistics: str | None = None,
    kind: str | None = None,
    **overrides: Any,
) -> "Policy":
    """Load a policy from a Hugging Face directory in the published layout.

    `device` "auto" is a GPU if there is one; `dtype` "auto" is that of the file. `statistics` is the data set whose
    statistics scale actions; None where there is one only. `kind` is "openvla" or "openvla_oft" where the directory
    does not tell: published ones of the two differ by the `.pt` parts of the latter alone, and one without is taken for
    an OpenVLA. `overrides`: fields of the policy's config that its directory lacks or has otherwise, such as `chunk` or
    `prompt_length`. Raises CheckpointError.
    """
    import torch

    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype: {dtype!r}; allowed: auto, {', '.join(DTYPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = Path(directory)
    return policy_module(kind or _kind(folder)).load(
        folder,
        device=torch.device(device),
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        statistics=statistics,
        **overrides,
    )


def policy_module(kind: str) -> Any:
    """The module of a policy. Raises ConfigError for a kind that is not known."""
    if kind not in KINDS:
        raise ConfigError(f"kind of policy: {kind!r}; allowed: {', '.join(sorted(KINDS))}")
    return import_module(KINDS[kind])


def _kind(directory: Path) -> str:
    from treadle.policies import checkpoint

    config = checkpoint.read_json(directory / checkpoint.CONFIG)
    source = directory / checkpoint.CONFIG
    if config.get("model_type") != "openvla":
        raise CheckpointError(f"{source}: model_type {config.get('model_type')!r}; known: openvla")
    named = config.get("treadle", {}).get("policy")
    if named is None:
        return next(kind for kind, module in KINDS.items() if import_module(module).recognizes(directory, config))
    if named not in KINDS:
        raise CheckpointError(f"{source}: policy {named!r} under 'treadle'; known: {', '.join(sorted(KINDS))}")
    return named
