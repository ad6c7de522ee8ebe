"""Parts of a policy that lie in files of their own beside the main weights, under published or own names."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from treadle.errors import CheckpointError
from treadle.policies import checkpoint

DISTRIBUTED = "module."
"""What distributed training leaves in front of the names in published files."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """Where a part is kept."""

    file: str
    """Name in the directory; `.pt` for a torch state dict, else safetensors."""
    prefix: str = ""
    """In front of every name in it."""

    def names(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The content of the file, of a part's tensors."""
        return {self.prefix + name: tensor for name, tensor in tensors.items()}


OWN = {
    name: PartFile(f"{name}.safetensors") for name in ("proprio_projector", "value_head", "action_head", "action_scale")
}
"""Where a part goes that was in no published file."""

PUBLISHED = {name: f"{name}--*.pt" for name in ("proprio_projector", "action_head", "vision_backbone")}
"""Parts that the official training script writes, one file each."""

REFUSED = {
    "noisy_action_projector--*": "a diffusion head; supported are discrete tokens and L1 regression",
}


def find_part(directory: Path, name: str) -> Path | None:
    """The file of a part, own or published. Raises CheckpointError where several could be meant."""
    if name in OWN and (directory / OWN[name].file).is_file():
        return directory / OWN[name].file
    paths = sorted(directory.glob(PUBLISHED[name])) if name in PUBLISHED else []
    if len(paths) > 1:
        raise CheckpointError(f"{directory}: {len(paths)} files of {name} ({paths[0].name}, ...); leave one")
    return paths[0] if paths else None


def read_part(directory: Path, name: str) -> tuple[dict[str, Tensor], PartFile]:
    """Tensors of a part by their names in it, and where they were. Raises CheckpointError."""
    path = find_part(directory, name)
    if path is None:
        raise checkpoint.missing(directory / (OWN[name].file if name in OWN else PUBLISHED[name]))
    if path.suffix != ".pt":
        return checkpoint.read_tensors(path), PartFile(path.name)
    tensors = checkpoint.read_torch(path)
    prefix = DISTRIBUTED if tensors and all(key.startswith(DISTRIBUTED) for key in tensors) else ""
    return {key.removeprefix(DISTRIBUTED): tensor for key, tensor in tensors.items()}, PartFile(path.name, prefix)


def refuse_unsupported(directory: Path) -> None:
    """Raises CheckpointError for a published part that Treadle has no model of."""
    for pattern, what in REFUSED.items():
        for path in directory.glob(pattern):
            raise CheckpointError(f"{path}: {what}")
