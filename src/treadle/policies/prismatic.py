"""What OpenVLA and OpenVLA-OFT share as policies: log-probs, values and losses, what is trained, and saving.

Shapes: B samples, C actions of a chunk, A action dimensions, K = C * A tokens, W width, R = 256 action rows, V values.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.errors import ConfigError
from treadle.policies import adapters, checkpoint
from treadle.policies import sampling as distribution
from treadle.policies.action_codec import soft_labels
from treadle.policies.llama import LeanLayer
from treadle.policies.parts import OWN
from treadle.policies.prismatic_config import to_json
from treadle.policies.prismatic_model import PrismaticModel
from treadle.policies.protocol import Decision, Evaluation, Inputs, Sampling
from treadle.policies.value_head import ValueHead
from treadle.policies.vision import Block, Tower

LORA_TARGETS = (
    *("proj", "qkv", "fc1", "fc2", "q", "kv", "fc3", "out_proj"),
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
)
"""Layers that published fine-tuning puts adapters on, by the last part of their names."""


class PrismaticPolicy(PrismaticModel):
    """All of `treadle.policies.protocol.Policy` but how tokens are decoded: `act` and `hidden_states`."""

    @property
    def value_outputs(self) -> int:
        """V of the value head, 0 without one."""
        return self.config.value_outputs

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

    def supervised_loss(
        self, inputs: Inputs, tokens: Tensor, label_width: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy of the action tokens [B, K] over the 256 action rows; see `Policy.supervised_loss`."""
        logits, _ = self._logits(inputs, self._reads(tokens, label_width, noise))
        rows = (tokens - self.codec.first_id).flatten()
        labels = soft_labels(rows, logits.shape[-1], label_width) if label_width else rows
        return F.cross_entropy(logits.flatten(0, 1), labels)

    def _reads(self, tokens: Tensor, label_width: float, noise: Tensor | None) -> Tensor:
        """The tokens [B, K] that `supervised_loss` lets the policy read, if it reads any, where `tokens` are right."""
        return tokens

    def tokenize_actions(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, C, A] to the nearest tokens [B, K]."""
        return self.codec.encode(actions)

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

    def compile_blocks(self, enabled: bool = True) -> None:
        """See `Policy.compile_blocks`. Blocks with FiLM stay as they are."""
        for module in self.modules():
            if isinstance(module, Block | LeanLayer):
                module.fast = enabled

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
