"""The public entry: any policy from its directory."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from treadle.config.schema import LoadingConfig
    from treadle.policies.protocol import Policy

DTYPES = ("float32", "bfloat16", "float16")

KINDS = {"openvla_oft": "treadle.policies.openvla_oft", "openvla": "treadle.policies.openvla"}
"""Modules of the policies, each with its class `POLICY`, `load`, `skeleton` (a policy without its weights), and with
`recognizes` for directories that do not name their policy: the first that recognises one has it. Those that can be made
from nothing have `create`, `tiny_config` and `sized_config`.
"""


def load_policy(
    directory: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    statistics: str | None = None,
    kind: str | None = None,
    merge: bool = True,
    **overrides: Any,
) -> "Policy":
    """Load a policy from a Hugging Face directory in the published layout.

    Args:
        directory: a published directory, one that `Policy.save` wrote, or that of an adapter whose base is on this
            machine.
        device: "auto" is a GPU if there is one; else a name such as "cpu" or "cuda:1".
        dtype: "auto" keeps the types of the files; else "float32", "bfloat16" or "float16".
        statistics: the data set whose statistics scale actions; None where there is one only.
        kind: "openvla" or "openvla_oft" where the directory does not tell: published ones of the two differ by the
            `.pt` parts of the latter alone, and one without is taken for an OpenVLA.
        merge: put an adapter that lies beside its base into the weights, for acting; else it stays trainable.
        overrides: settings that the directory lacks or has otherwise, such as `chunk`, `prompt_length`,
            `center_crop`, `head` or `proprioception_dim` (fields of the policy's config).

    Raises:
        CheckpointError: what is missing, surplus, corrupt or does not fit, with what there is.
        ConfigError: an argument that is not allowed.
    """
    import torch

    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype: {dtype!r}; allowed: auto, {', '.join(DTYPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = Path(directory)
    return policy_module(kind or policy_kind(folder)).load(
        folder,
        device=torch.device(device),
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        statistics=statistics,
        merge=merge,
        **overrides,
    )


def load_configured(directory: Path, config: "LoadingConfig", *, device: str, merge: bool = True) -> "Policy":
    """Load a policy as the section `policy` of a configuration has it. Raises as `load_policy`."""
    policy = load_policy(
        directory,
        device=device,
        dtype=config.dtype,
        statistics=config.statistics,
        kind=config.kind,
        merge=merge,
        **config.options,
    )
    policy.compile_blocks(config.compile)
    return policy


def policy_module(kind: str) -> Any:
    """The module of a policy. Raises ConfigError for a kind that is not known."""
    if kind not in KINDS:
        raise ConfigError(f"kind of policy: {kind!r}; allowed: {', '.join(sorted(KINDS))}")
    return import_module(KINDS[kind])


def policy_kind(directory: Path) -> str:
    """The kind of the policy in a directory. Raises CheckpointError."""
    from treadle.policies import adapters, checkpoint

    adapter = adapters.find_adapter(directory)
    if adapter is not None and adapter == directory and not (directory / checkpoint.CONFIG).is_file():
        directory = adapters.find_base(adapter)
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
