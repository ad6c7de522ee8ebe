"""What OpenVLA and OpenVLA-OFT share: two vision towers, a projector and a Llama that decodes action tokens.

Shapes: B samples, C actions of a chunk, A action dimensions, K = C * A tokens, L prompt tokens, S patches of all
cameras, N columns of the prefix, W width, R = 256 action rows, V values.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from treadle.errors import ConfigError
from treadle.policies import adapters, checkpoint
from treadle.policies import sampling as distribution
from treadle.policies.action_codec import ActionCodec, soft_labels
from treadle.policies.image import check_frames, crop_centre, pixel_values, read_normalization, resize
from treadle.policies.llama import LeanLayer, make_lean
from treadle.policies.parts import OWN, PartFile
from treadle.policies.prismatic_config import TOWER_NAMES, PrismaticConfig, to_json
from treadle.policies.projector import ProprioProjector, VisionProjector
from treadle.policies.prompt import PromptTokenizer, read_tokenizer
from treadle.policies.protocol import Decision, Evaluation, Inputs, Sampling
from treadle.policies.statistics import read_range
from treadle.policies.value_head import ValueHead
from treadle.policies.vision import Tower, build_tower

LORA_TARGETS = (
    *("proj", "qkv", "fc1", "fc2", "q", "kv", "fc3", "out_proj"),
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
)
"""Layers that published fine-tuning puts adapters on, by the last part of their names."""


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
        index = self._index(columns)
        return index if self.gap is None else index - self.gap * (index >= self.last)

    def valid(self, columns: int) -> Tensor | None:
        """Bool [B, columns], False on padding; None where there is none."""
        index = self._index(columns)
        return None if self.gap is None else (index < self.last - self.gap) | (index >= self.last)

    def _index(self, columns: int) -> Tensor:
        return torch.arange(columns, device=self.embeddings.device)[None]


class PrismaticPolicy(nn.Module):
    """All of `treadle.policies.protocol.Policy` but how tokens are decoded: `act` and `hidden_states`."""

    def __init__(
        self,
        config: PrismaticConfig,
        norm_stats: dict[str, Any],
        statistics: str,
        files: dict[str, bytes],
        allocate: bool = True,
    ) -> None:
        """`norm_stats` of all data sets; `statistics`: the key that scales actions; `files`: tokenizer, preprocessor.

        Without `allocate` the parameters are on the meta device, for tensors of a checkpoint to take their place.
        """
        super().__init__()
        self.config = config
        self.norm_stats = norm_stats
        self.statistics = statistics
        self.files = files
        self.chunk = config.chunk
        self.action_dim = config.action_dim
        self.sources: dict[str, PartFile] = dict(OWN)
        """Where each part is written that is kept out of the main weights: where it was read."""
        self.layout: dict[str, str] = {}
        """The file of each of the main weights, as they were read."""
        self.base: Path | None = None
        """The directory that the main weights were read from; what an adapter saved alone belongs to."""
        entry = norm_stats[statistics]
        self.codec = ActionCodec(
            config.vocabulary,
            config.chunk,
            read_range(entry, "action", config.normalization, checkpoint.STATISTICS),
        )
        self.proprioception_range = (
            read_range(entry, "proprio", config.normalization, checkpoint.STATISTICS)
            if config.proprioception_dim
            else None
        )
        self.prompts = PromptTokenizer(read_tokenizer(files), config.pad_token_id, config.prompt_length)
        self._means, self._stds = read_normalization(files, len(config.towers))

        with nullcontext() if allocate else torch.device("meta"):
            self._build(config)

    def _build(self, config: PrismaticConfig) -> None:
        self.vision_backbone = nn.Module()
        for name, model_id in zip(TOWER_NAMES, config.towers, strict=False):
            tower = build_tower(model_id, config.image_size, config.tower_overrides.get(name, {}))
            self.vision_backbone.add_module(name, tower)
        self.projector = VisionProjector(
            sum(tower.width for tower in self.towers()), config.width, fused=len(config.towers) == 2
        )
        self.language_model = LlamaForCausalLM(LlamaConfig(**config.text))
        make_lean(self.language_model)
        self.proprio_projector = (
            ProprioProjector(config.proprioception_dim, config.width) if config.proprioception_dim else None
        )
        self.value_head = (
            ValueHead(config.width, config.value_hidden, config.value_outputs) if config.value_outputs else None
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.language_model.lm_head.weight.device

    @property
    def value_outputs(self) -> int:
        """V of the value head, 0 without one."""
        return self.config.value_outputs

    def prepare(
        self,
        frames: NDArray[np.uint8] | list[NDArray[np.uint8]],
        instructions: list[str],
        proprioception: NDArray[np.float32] | None = None,
    ) -> Inputs:
        """Frames [B, cameras, H, W, 3], or one array [B, H, W, 3] per camera, to inputs of the model; see `Policy`.

        Proprioception is ignored by a policy without projector, and an error to leave out for one that has it.
        """
        cameras = frames if isinstance(frames, list) else [frames[:, camera] for camera in range(frames.shape[1])]
        for camera in cameras:
            check_frames(camera)
        size, kept = self.config.image_size, self.config.center_crop
        # Frames cross to the device as they are, in bytes, and are resized there.
        moved = [torch.from_numpy(camera.copy()).to(self.device) for camera in cameras]
        parts = [crop_centre(resize(camera, size), kept) for camera in moved]
        if len({len(part) for part in parts}) != 1:
            raise ConfigError(f"frames: cameras of {[len(part) for part in parts]} samples; all must have as many")
        pixels = torch.stack(parts, dim=1)
        ids, mask = self.prompts.encode(instructions)
        if len(ids) != len(pixels):
            raise ConfigError(f"frames of {len(pixels)} samples, instructions of {len(ids)}")
        return Inputs(ids, mask, frames=pixels, proprioception=self._scaled(proprioception)).to(self.device)

    def encode(self, inputs: Inputs) -> Inputs:
        """Replace frames by projected features [B, S, W], without gradient."""
        with torch.no_grad():
            features = self.features(inputs)
        return Inputs(inputs.input_ids, inputs.attention_mask, features=features, proprioception=inputs.proprioception)

    def act(self, inputs: Inputs, sampling: Sampling, noise: Tensor | None = None) -> Decision:
        """See `Policy.act`."""
        raise NotImplementedError

    def hidden_states(self, inputs: Inputs, tokens: Tensor | None = None, reads: int | None = None) -> Tensor:
        """Last hidden states [B, reads, W] from the last prompt token on: those that predict the action tokens.

        `tokens` [B, K] are what is read at each position in turn, where a policy decodes one after another. `reads` is
        how many there are: K by default, and 1 for a policy that would need tokens for more and has none.
        """
        raise NotImplementedError

    def evaluate(self, inputs: Inputs, tokens: Tensor, sampling: Sampling) -> Evaluation:
        """See `Policy.evaluate`."""
        logits, hidden = self._logits(inputs, tokens)
        rows = tokens - self.codec.first_id
        log_probs = distribution.log_distribution(logits, sampling, rows)
        return Evaluation(
            distribution.take(log_probs, rows), distribution.entropy(log_probs, sampling), self._values(hidden)
        )

    def values(self, inputs: Inputs) -> Tensor:
        """Values [B, V] alone."""
        values = self._values(self.hidden_states(inputs, reads=1))
        if values is None:
            raise ConfigError("the policy has no value head; give it one with add_value_head")
        return values

    def supervised_loss(self, inputs: Inputs, tokens: Tensor, label_width: float = 0.0) -> Tensor:
        """Mean cross-entropy of the action tokens [B, K] over the 256 action rows; see `Policy.supervised_loss`."""
        logits, _ = self._logits(inputs, tokens)
        rows = (tokens - self.codec.first_id).flatten()
        labels = soft_labels(rows, logits.shape[-1], label_width) if label_width else rows
        return F.cross_entropy(logits.flatten(0, 1), labels)

    def tokenize_actions(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, C, A] to the nearest tokens [B, K]."""
        return self.codec.encode(actions)

    def features(self, inputs: Inputs) -> Tensor:
        """Projected patches [B, S, W] of all cameras in order, with gradient where enabled."""
        if inputs.features is not None:
            return inputs.features
        if inputs.frames is None:
            raise ConfigError("inputs: neither frames nor features")
        batch, cameras = inputs.frames.shape[:2]
        dtype = self.projector.fc1.weight.dtype
        pixels = pixel_values(
            inputs.frames.flatten(0, 1), self._means.to(self.device), self._stds.to(self.device), dtype
        )
        towers, language = self.towers(), self._language(inputs)
        patches = [tower(part, *language) for tower, part in zip(towers, pixels.split(3, dim=1), strict=True)]
        projected = self.projector(torch.cat(patches, dim=-1) if len(patches) > 1 else patches[0])
        return projected.reshape(batch, cameras * projected.shape[1], -1)

    def prefix(self, inputs: Inputs) -> Prefix:
        """What comes before the action tokens. Prompts may be padded on either side."""
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

    def add_value_head(self, outputs: int, hidden: tuple[int, ...] | None = None) -> None:
        """Give the policy a fresh value head, zero-initialised at its end, in place of any it has.

        `outputs` V: 1 or C. `hidden`: widths of its layers, by default the config's `value_hidden`.
        """
        hidden = self.config.value_hidden if hidden is None else hidden
        self.config = replace(self.config, value_outputs=outputs, value_hidden=hidden)
        self.value_head = ValueHead(self.config.width, hidden, outputs).to(self.device)

    def freeze(self, vision: bool = True, language: bool = False) -> dict[str, list[nn.Parameter]]:
        """Choose what is trained; returns the trainable parameters of the `policy` and of its `value` head.

        `vision` freezes towers and vision projector, so that `encode` may be called once; `language` freezes the Llama
        and what else is neither vision nor values. Of a part with adapters they alone are trained. Parameters that take
        no part in the output are always frozen.
        """
        unused = {id(p) for p in self.unused()}
        adapted = bool(adapters.layers(self))
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            frozen = {"vision_backbone": vision, "projector": vision, "value_head": False}.get(part, language)
            frozen |= adapted and part in adapters.PARTS and ".lora_" not in name
            parameter.requires_grad_(not frozen and id(parameter) not in unused)
        groups: dict[str, list[nn.Parameter]] = {"policy": [], "value": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups["value" if name.startswith("value_head.") else "policy"].append(parameter)
        return groups

    def unused(self) -> list[nn.Parameter]:
        """Parameters that take no part in the output, hence get no gradient."""
        return [p for tower in self.towers() for p in tower.unused()]

    def add_lora(
        self,
        rank: int,
        alpha: float | None = None,
        targets: Sequence[str] = (),
        vision: bool = False,
    ) -> None:
        """Put fresh adapters on the layers that `targets` name; only those, and heads and projectors in files of their
        own, are trained from here on. A policy that has adapters of this rank keeps them.

        `alpha` None is the rank and no `targets` are `LORA_TARGETS`, as published; `vision` includes towers and vision
        projector. Raises ConfigError for adapters of another rank, and for a target that no layer has.
        """
        there = adapters.layers(self)
        if there:
            ranks = {layer.r["default"] for layer in there.values()}
            if ranks != {rank}:
                raise ConfigError(
                    f"policy.lora.rank {rank}: the checkpoint has adapters of rank {sorted(ranks)}; keep theirs"
                )
            return
        names = {name.rpartition(".")[2] for name, _ in self.named_modules()}
        unknown = [target for target in targets if target not in names]
        if unknown:
            raise ConfigError(
                f"policy.lora.targets: no layer is named {', '.join(unknown)}; published: {', '.join(LORA_TARGETS)}"
            )
        unused = {id(p) for p in self.unused()}
        idle = [name for name, module in self.named_modules() if any(id(p) in unused for p in module.parameters(False))]
        frozen = [*idle, *(() if vision else ("vision_backbone.", "projector."))]
        adapters.add_lora(self, rank, rank if alpha is None else alpha, targets or LORA_TARGETS, frozen)

    def recompute(self, enabled: bool = True) -> None:
        """Gradient checkpointing: keep only what is between transformer blocks, and compute the rest again in the
        backward pass. Gradients are the same.
        """
        for module in self.modules():
            if isinstance(module, Tower | LeanLayer):
                module.recompute = enabled

    def save(self, directory: Path, *, merge: bool = True) -> None:
        """Write a directory in the published layout, whole or not at all; raises OutputError.

        Adapters are merged into the weights; without `merge` they are written alone, beside the path of the directory
        that the policy was loaded from, which must stay where it is.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        main: dict[str, Tensor] = {}
        for name, tensor in adapters.plain_state(self).items():
            part, _, rest = name.partition(".")
            if part in self.sources and part not in adapters.PARTS:
                parts.setdefault(part, {})[rest] = tensor
            else:
                main[name] = tensor
        files = {
            **self.files,
            checkpoint.CONFIG: checkpoint.dump_json(to_json(self.config, self.norm_stats)),
            checkpoint.STATISTICS: checkpoint.dump_json(self.norm_stats),
        }
        tensors = {self.sources[part].file: self.sources[part].names(content) for part, content in parts.items()}
        if merge or not adapters.layers(self):
            tensors |= self._main_files(main)
        else:
            if self.base is None:
                raise ConfigError("an adapter is saved alone beside a base, and this policy was made, not loaded")
            tensors |= {file: x for file, x in self._main_files(main).items() if file != checkpoint.WEIGHTS}
            texts, content = adapters.written(self, self.base)
            files |= {f"{adapters.FOLDER}/{name}": text for name, text in texts.items()}
            tensors[f"{adapters.FOLDER}/{adapters.ADAPTER_WEIGHTS}"] = content
        checkpoint.write_directory(Path(directory), files, tensors, self.layout, adapters.exporter(self))

    def main_state(self) -> dict[str, Tensor]:
        """The tensors of the main weights as their files name them."""
        state = adapters.plain_state(self)
        own = {name for name in state if name.partition(".")[0] in OWN}
        return self._main_files({name: x for name, x in state.items() if name not in own})[checkpoint.WEIGHTS]

    def take_main(
        self, weights: dict[str, Tensor], directory: Path, dtype: torch.dtype | None, device: torch.device
    ) -> dict[str, Tensor]:
        """The main weights as this policy names them, given those of the files; a subclass may add what lies in files
        of their own in `directory`.
        """
        return weights

    def make_part(self, name: str, device: torch.device) -> bool:
        """Make a part afresh that its directory has no file of; False where it must have one."""
        return False

    def _main_files(self, main: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The files of the main weights."""
        return {checkpoint.WEIGHTS: main}

    def _language(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """What the towers take beside pixels, for each image."""
        return ()

    def towers(self) -> list[Any]:
        """One or two vision towers."""
        return list(self.vision_backbone.children())

    def _logits(self, inputs: Inputs, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Float32 logits [B, K, R] of the action rows, and the hidden states [B, K, W] they are from."""
        hidden = self.hidden_states(inputs, tokens)
        return self._action_logits(hidden), hidden

    def _action_logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [..., R] of the action rows, all that is ever computed of the language head."""
        rows = slice(self.codec.first_id, self.codec.vocabulary)
        return adapters.linear_rows(self.language_model.lm_head, hidden, rows).float()

    def _values(self, hidden: Tensor) -> Tensor | None:
        return None if self.value_head is None else self.value_head(hidden[:, 0])

    def _scaled(self, proprioception: NDArray[np.float32] | None) -> Tensor | None:
        if self.proprioception_range is None:
            return None
        if proprioception is None:
            raise ConfigError(f"the policy takes proprioception [B, {self.config.proprioception_dim}]; none was given")
        raw = torch.as_tensor(np.asarray(proprioception, dtype=np.float64))
        if raw.shape[-1] != self.config.proprioception_dim:
            raise ConfigError(
                f"proprioception has {raw.shape[-1]} numbers, the policy takes {self.config.proprioception_dim}"
            )
        return self.proprioception_range.normalize(raw).clamp(-1, 1).float()
