"""The network of OpenVLA and OpenVLA-OFT, and what goes into it: two vision towers, a projector and a Llama.

Shapes: B samples, L prompt tokens, S patches of all cameras, N columns of the prefix, W width.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from treadle.data.batch import TensorBatch
from treadle.errors import CheckpointError, ConfigError
from treadle.policies import checkpoint
from treadle.policies.critic import ValueHead
from treadle.policies.observations import check_observations, check_proprioception
from treadle.policies.prismatic.action_tokens import ActionCodec
from treadle.policies.prismatic.blocks import in_blocks
from treadle.policies.prismatic.config import TOWER_NAMES, PrismaticConfig
from treadle.policies.prismatic.image import pixel_values, prepare
from treadle.policies.prismatic.llama import make_lean
from treadle.policies.prismatic.load import OWN, PartFile
from treadle.policies.prismatic.preprocessor import read_images
from treadle.policies.prismatic.prompt import PromptTokenizer
from treadle.policies.prismatic.statistics import read_range
from treadle.policies.prismatic.tokenizer import check_vocabulary, read_tokenizer
from treadle.policies.prismatic.vision import Mlp, build_tower
from treadle.policies.protocol import Policy, Scaling
from treadle.policies.towers import VisionProjector
from treadle.reading import library


@dataclass(slots=True)
class PrismaticInputs(TensorBatch):
    """Model inputs of B samples. Either `frames` or `features` is there."""

    input_ids: Tensor
    """[B, L] prompt tokens, right-padded, int64."""
    attention_mask: Tensor
    """[B, L] bool, False on padding."""
    frames: Tensor | None = None
    """[B, cameras, H, W, 3] uint8, RGB."""
    features: Tensor | None = None
    """[B, S, W] projected vision features, in place of frames."""
    proprioception: Tensor | None = None
    """[B, P] float32, normalised to [-1, 1] by the policy's statistics."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The sequence up to the first decoded token: `[BOS] [patches] [proprioception, optional] [prompt]`.

    The last prompt token stands behind the padding of shorter prompts, in the last column: the columns that are read
    are then the same in every row. Positions count as if the padding were not there.
    """

    embeddings: Tensor
    """[B, N, W]."""
    gap: Tensor | None
    """[B, 1] columns of padding before the last one; None where no row has any."""

    @property
    def last(self) -> int:
        """The column of the last prompt token, N - 1."""
        return self.embeddings.shape[1] - 1

    def positions(self, columns: int) -> Tensor:
        """Positions [1 or B, columns] of the prefix and what follows it."""
        index = torch.arange(columns, device=self.embeddings.device)[None]
        return index if self.gap is None else index - self.gap * (index >= self.last)

    def valid(self, columns: int) -> Tensor | None:
        """Bool [B, columns], False on padding; None where there is none."""
        index = torch.arange(columns, device=self.embeddings.device)[None]
        return None if self.gap is None else (index < self.last - self.gap) | (index >= self.last)


class PrismaticModel(Policy):
    """Parameters and their names, and the way from frames, instructions and proprioception to the prefix."""

    def __init__(
        self,
        config: PrismaticConfig,
        norm_stats: dict[str, Any],
        statistics: str,
        files: dict[str, bytes],
        allocate: bool = True,
        source: str = checkpoint.STATISTICS,
    ) -> None:
        """`norm_stats` of all data sets; `statistics`: the key that scales actions; `files`: tokenizer, preprocessor.

        Without `allocate` the parameters are on the meta device, for tensors of a checkpoint to take their place.
        `source`: the file of the statistics, for errors.
        """
        super().__init__()
        self.config = config
        self.files = files
        self.chunk = config.chunk
        self.action_dim = config.action_dim
        self.sources: dict[str, PartFile] = dict(OWN)
        """Where each part is written that is kept out of the main weights: where it was read."""
        self.layout: dict[str, str] = {}
        """The file of each of the main weights, as they were read."""
        self.base: Path | None = None
        """The directory that the main weights were read from; what an adapter saved alone belongs to."""
        self._scale_by(norm_stats, statistics, source)
        tokenizer = read_tokenizer(files)
        check_vocabulary(tokenizer, config.vocabulary, config.text["vocab_size"], config.pad_token_id)
        self.prompts = PromptTokenizer(tokenizer, config.pad_token_id, config.prompt_length, config.prompt)
        self._images = read_images(
            files, config.image_size[0], len(config.towers), config.published.get("image_resize_strategy")
        )

        with nullcontext() if allocate else torch.device("meta"):
            self._build(config)

    def _scale_by(self, norm_stats: dict[str, Any], statistics: str, source: str) -> None:
        """Take the statistics of a key for actions and proprioception; `source` names them in errors. Raises
        CheckpointError.
        """
        config = self.config
        sizes = {"action": config.action_dim, "proprio": config.proprioception_dim}
        ranges = [
            read_range(norm_stats, statistics, part, config.normalization, source, size)
            for part, size in sizes.items()
            if size
        ]
        self.norm_stats, self.statistics = norm_stats, statistics
        self.codec = ActionCodec(config.vocabulary, config.chunk, ranges[0])
        self.proprioception_range = ranges[1] if config.proprioception_dim else None

    def describe(self) -> dict[str, Any]:
        """See `Policy.describe`."""
        facts = {"statistics": self.statistics, "prompt": self.config.prompt, "image_size": self.config.image_size[0]}
        return {**super().describe(), **facts, **self.config.facts()}

    @property
    def scaling(self) -> Scaling:
        """See `Policy.scaling`."""
        taken = self.proprioception_range
        return Scaling(self.statistics, self.codec.scale.arrays(), None if taken is None else taken.arrays())

    def rescale(self, name: str, statistics: dict[str, Any]) -> None:
        """See `Policy.rescale`. Raises ConfigError for statistics of other dimensions."""
        found = len(statistics["action"]["mask"])
        if found != self.action_dim:
            raise ConfigError(f"statistics {name!r}: actions of {found} dimensions; the policy has {self.action_dim}")
        self._scale_by({name: statistics}, name, "imitation.statistics")

    def _build(self, config: PrismaticConfig) -> None:
        self.vision_backbone = nn.Module()
        for name, model_id in zip(TOWER_NAMES, config.towers, strict=False):
            tower = build_tower(model_id, config.image_size, config.tower_overrides.get(name, {}))
            self.vision_backbone.add_module(name, tower)
        self.projector = VisionProjector(
            sum(tower.width for tower in self.towers()), config.width, fused=len(config.towers) == 2
        )
        with library("config.json: text_config", CheckpointError, "the configuration of a Llama"):
            text = LlamaConfig(**config.text)
        self.language_model = LlamaForCausalLM(text)
        make_lean(self.language_model)
        width, proprioception, values = config.width, config.proprioception_dim, config.value_outputs
        self.proprio_projector = Mlp(proprioception, width, width) if proprioception else None
        self.value_head = ValueHead(width, config.value_hidden, values) if values else None

    @property
    def cameras(self) -> int:
        """See `Policy.cameras`."""
        return self.config.cameras

    def prepare(
        self,
        frames: NDArray[np.uint8] | list[NDArray[np.uint8]],
        instructions: list[str],
        proprioception: NDArray[np.float32] | None = None,
    ) -> PrismaticInputs:
        """Frames [B, cameras, H, W, 3], or one array [B, H, W, 3] per camera, to inputs of the model; see `Policy`.

        Proprioception is ignored by a policy without projector, and an error to leave out for one that has it.
        """
        cameras = check_observations(frames, instructions)
        known = self.config.cameras
        if known and len(cameras) != known:
            raise ConfigError(
                f"frames of {len(cameras)} cameras, the policy has learned from {known}; let the simulator show as "
                f"many (simulator.options), or set policy.options.cameras={len(cameras)} if it shall learn from them"
            )
        config, found = self.config, self._images
        # Frames cross to the device as they are, in bytes, and are resized there.
        moved = [torch.from_numpy(camera.copy()).to(self.device) for camera in cameras]
        pixels = torch.stack(
            [
                prepare(camera, config.image_size, config.resize, found.strategy, found.fill, config.center_crop)
                for camera in moved
            ],
            dim=1,
        )
        ids, mask = self.prompts.encode(list(instructions))
        state = self._scaled(proprioception, len(pixels))
        return PrismaticInputs(ids, mask, frames=pixels, proprioception=state).to(self.device)

    def encode(self, inputs: PrismaticInputs) -> PrismaticInputs:
        """Replace frames by projected features [B, S, W], without gradient."""
        with torch.no_grad():
            features = self.features(inputs)
        return replace(inputs, frames=None, features=features)

    def features(self, inputs: PrismaticInputs) -> Tensor:
        """Projected patches [B, S, W] of all cameras in order, with gradient where enabled."""
        if inputs.features is not None:
            return inputs.features
        if inputs.frames is None:
            raise ConfigError("inputs: neither frames nor features")
        batch, cameras = inputs.frames.shape[:2]
        images, language = inputs.frames.flatten(0, 1), self._language(inputs)
        towers = self.towers()
        weight = self.projector.fc1.weight
        largest = max(*(tower.largest for tower in towers), towers[0].patches * len(weight))

        def project(rows: slice) -> Tensor:
            return self._project(images[rows], [x[rows] for x in language])

        projected = in_blocks(project, len(images), largest, weight)
        return projected.reshape(batch, cameras * projected.shape[1], -1)

    def _project(self, images: Tensor, language: list[Tensor]) -> Tensor:
        """Projected patches [n, S, W] of images [n, H, W, 3]."""
        dtype = self.projector.fc1.weight.dtype
        pixels = pixel_values(images, self._images.means.to(self.device), self._images.stds.to(self.device), dtype)
        patches = [tower(part, *language) for tower, part in zip(self.towers(), pixels, strict=True)]
        return self.projector(torch.cat(patches, dim=-1) if len(patches) > 1 else patches[0])

    def prefix(self, inputs: PrismaticInputs) -> Prefix:
        """What comes before the action tokens. Prompts may be padded on either side.

        Raises ConfigError for inputs that no `prepare` made.
        """
        if not isinstance(inputs, PrismaticInputs):
            raise ConfigError(f"inputs: {type(inputs).__name__}; give what the policy's own prepare or encode returned")
        lengths = inputs.attention_mask.sum(dim=1, keepdim=True)
        longest = int(lengths.max())
        order = inputs.attention_mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        ids = inputs.input_ids.gather(1, torch.cat([order[:, : longest - 1], order.gather(1, lengths - 1)], dim=1))
        prompt = self.language_model.model.embed_tokens(ids)
        parts = [prompt[:, :1], self.features(inputs).to(prompt.dtype)]
        if self.proprio_projector is not None and inputs.proprioception is not None:
            state = inputs.proprioception.to(self.proprio_projector.fc1.weight.dtype)
            parts.append(self.proprio_projector(state).to(prompt.dtype)[:, None])
        gap = longest - lengths
        return Prefix(torch.cat([*parts, prompt[:, 1:]], dim=1), gap if bool(gap.any()) else None)

    def unused(self) -> list[nn.Parameter]:
        """Parameters that take no part in the output, hence get no gradient."""
        return [p for tower in self.towers() for p in tower.unused()]

    def _language(self, inputs: PrismaticInputs) -> tuple[Tensor, ...]:
        """What the towers take beside pixels, for each image."""
        return ()

    def towers(self) -> list[Any]:
        """One or two vision towers."""
        return list(self.vision_backbone.children())

    def _scaled(self, proprioception: object, count: int) -> Tensor | None:
        """Proprioception [count, P] of samples in robot units, scaled and clipped to [-1, 1]. Raises ConfigError."""
        if self.proprioception_range is None:
            return None
        raw = check_proprioception(proprioception, count, self.config.proprioception_dim)
        return self.proprioception_range.normalize(raw).clamp(-1, 1).float()
