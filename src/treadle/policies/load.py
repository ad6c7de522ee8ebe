"""The public entry: any policy from its directory, and the policies that there are."""

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.errors import CheckpointError, ConfigError, did_you_mean
from treadle.plugins import import_callable

if TYPE_CHECKING:
    import torch

    from treadle.config.schema import LoadingConfig
    from treadle.policies.inspection import CheckpointContents
    from treadle.policies.protocol import Policy

GROUP = "treadle.policies"
DTYPES = ("float32", "bfloat16", "float16")


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
    """Load a policy from its directory.

    Args:
        directory: a published directory, one that `Policy.save` wrote, or that of an adapter whose base is on this
            machine.
        device: "auto" is a GPU if there is one; else a name such as "cpu" or "cuda:1".
        dtype: "auto" keeps the type of the files, or of most numbers in them; else "float32", "bfloat16" or "float16".
        statistics: the data set whose statistics scale actions; None where there is one only.
        kind: the name of an installed policy, or `package.module:Class`, where the directory does not tell.
        merge: put an adapter that lies beside its base into the weights, for acting; else it stays trainable.
        overrides: settings that the directory lacks or has otherwise, such as `chunk`, `prompt_length`,
            `center_crop`, `head` or `proprioception_dim` (fields of the policy's config).

    Raises:
        CheckpointError: what is missing, surplus, corrupt or does not fit, with what there is.
        ConfigError: an argument that is not allowed.
    """
    from treadle.devices import choose_device

    place = choose_device(device)
    folder = Path(directory)
    return (policy_class(kind) if kind else find_policy(folder)).load(
        folder,
        device=place,
        dtype=_dtype(dtype),
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


def examine_policy(directory: Path, config: "LoadingConfig | None" = None) -> "CheckpointContents":
    """What a directory holds, read as the section `policy` of a configuration has it.

    Raises CheckpointError for what would keep it from loading, and ConfigError for settings that are not allowed.
    """
    if config is None:
        return find_policy(directory).examine(directory)
    found = policy_class(config.kind) if config.kind else find_policy(directory)
    return found.examine(directory, statistics=config.statistics, dtype=_dtype(config.dtype), **config.options)


def outline_policy(directory: Path, config: "LoadingConfig") -> "Policy":
    """The policy of a directory for its shapes and types alone, read as the section `policy` of a configuration has it.
    Raises as `examine_policy`.
    """
    found = policy_class(config.kind) if config.kind else find_policy(directory)
    return found.outline(directory, statistics=config.statistics, dtype=_dtype(config.dtype), **config.options)


def _dtype(name: str) -> "torch.dtype | None":
    """The type of a name, None for `auto`. Raises ConfigError."""
    import torch

    if name not in ("auto", *DTYPES):
        raise ConfigError(f"dtype: {name!r}; allowed: auto, {', '.join(DTYPES)}")
    return None if name == "auto" else getattr(torch, name)


def installed_policies() -> dict[str, EntryPoint]:
    """Names of the policies that installed packages offer, by the entry point group `treadle.policies`."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP))}


def policy_class(name: str, key: str = "policy.kind") -> "type[Policy]":
    """The class of an installed policy's name, or of `package.module:Class`. Raises ConfigError, which names `key`."""
    from treadle.policies.protocol import Policy

    installed = installed_policies()
    if name not in installed and ":" not in name:
        raise ConfigError(
            f"{key}: unknown policy {name!r}{did_you_mean(name, installed)}; "
            f"installed: {', '.join(installed) or 'none'}; or name a class as package.module:Class"
        )
    found = import_callable(key, installed[name].value if name in installed else name, "class")
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ConfigError(f"{key}: {name!r} is no treadle.policies.protocol.Policy; derive it from that class")
    return found


def find_policy(directory: Path) -> "type[Policy]":
    """The class of the policy in a directory: the one that its config.json names under `treadle.policy`, else the
    installed one that recognises the directory. Raises CheckpointError.
    """
    from treadle.policies import checkpoint
    from treadle.policies.tensors import missing

    source = directory / checkpoint.CONFIG
    config = checkpoint.read_json(source) if source.is_file() else {}
    named = checkpoint.named_policy(config, source)
    if named is not None:
        try:
            return policy_class(named, "treadle.policy")
        except ConfigError as error:
            raise CheckpointError(f"{source}: {error}") from error
    for name in installed_policies():
        found = policy_class(name)
        if found.recognizes(directory, config):
            return found
    if not source.is_file():
        raise missing(source)
    raise CheckpointError(
        f"{source}: model_type {config.get('model_type')!r} and no treadle.policy; none of the installed policies "
        f"recognises the directory ({', '.join(installed_policies())}); name one by policy.kind"
    )
