"""What OpenVLA and OpenVLA-OFT share as policies: log-probs, values and losses, and what is trained.

Shapes: B samples, C actions of a chunk, A action dimensions, K = C * A tokens, W width, R = 256 action rows, V values.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.data import noise
from treadle.data.noise import Keys
from treadle.errors import ConfigError
from treadle.policies import adapters
from treadle.policies.critic import ValueHead
from treadle.policies.prismatic import action_tokens
from treadle.policies.prismatic.llama import LeanLayer
from treadle.policies.prismatic.load import LORA_TARGETS, PARTS
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.stored import StoredPolicy
from treadle.policies.prismatic.vision import Block
from treadle.policies.protocol import Decision, Evaluation
from treadle.policies.sampling import Sampling, check_sampling
from treadle.policies.towers import Tower


class PrismaticPolicy(StoredPolicy):
    """A policy of the family, but for how actions are decoded: `act`, `hidden_states` and `configure`."""

    @property
    def width(self) -> int:
        """W, of features and hidden states."""
        return self.config.width

    @property
    def value_outputs(self) -> int:
        """V of the value head, 0 without one."""
        return self.config.value_outputs

    @abstractmethod
    def hidden_states(self, inputs: PrismaticInputs, tokens: Tensor | None = None, reads: int | None = None) -> Tensor:
        """Last hidden states [B, reads, W] from the last prompt token on: those that predict the action tokens.

        `tokens` [B, K] are what is read at each position in turn, where a policy decodes one after another. `reads` is
        how many there are: K by default, and 1 for a policy that would need tokens for more and has none.
        """

    def evaluate(self, inputs: PrismaticInputs, choice: Tensor, sampling: Sampling) -> Evaluation:
        """See `Policy.evaluate`."""
        self._check_choice(inputs, choice, sampling)
        logits, hidden = self._logits(inputs, choice)
        rows = choice - self.codec.first_id
        log_distribution = action_tokens.log_distribution(logits, sampling, rows)
        log_probs = action_tokens.take(log_distribution, rows)
        entropy = action_tokens.entropy(log_distribution, sampling)
        return Evaluation(self._by_action(log_probs), self._by_action(entropy), self._values(hidden))

    def values(self, inputs: PrismaticInputs) -> Tensor:
        """See `Policy.values`."""
        values = self._values(self.hidden_states(inputs, reads=1))
        if values is None:
            raise ConfigError("the policy has no value head; give it one with add_value_head")
        return values

    def targets(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, C, A] to the nearest tokens [B, K]."""
        return self.codec.encode(actions)

    def supervised_loss(
        self,
        inputs: PrismaticInputs,
        targets: Tensor,
        *,
        label_width: float = 0.0,
        generator: torch.Generator | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the action tokens [B, K] over the 256 action rows; see `Policy.supervised_loss`.

        A policy that decodes one token after another reads earlier tokens drawn from the spread labels: it meets in
        training what it will have sampled.
        """
        logits, _ = self._logits(inputs, self._read_in_training(targets, label_width, generator))
        rows = (targets - self.codec.first_id).flatten()
        labels = action_tokens.soft_labels(rows, logits.shape[-1], label_width) if label_width else rows
        losses = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none" if counted is not None else "mean")
        return losses if counted is None else self._mean_counted(losses.unflatten(0, targets.shape), counted)

    def _mean_counted(self, losses: Tensor, counted: Tensor | None) -> Tensor:
        """The mean of losses [B, K], of the actions [B, C] that count."""
        return losses.mean() if counted is None else losses.unflatten(1, (self.chunk, -1))[counted].mean()

    def _read_in_training(self, tokens: Tensor, label_width: float, generator: torch.Generator | None) -> Tensor:
        """The tokens [B, K] that `supervised_loss` lets the policy read, if it reads any, where `tokens` are right."""
        return tokens

    def vision_parts(self) -> nn.ModuleList:
        """The towers and the vision projector."""
        return nn.ModuleList([self.vision_backbone, self.projector])

    def instructed_states(self, inputs: PrismaticInputs, instructions: list[str], generator: torch.Generator) -> Tensor:
        """Hidden states [B, K, W] at the positions that predict actions, under other instructions.

        A policy that reads its own actions reads random ones: whatever it did, it shall know where things are.
        """
        ids, mask = self.prompts.encode(instructions)
        inputs = replace(inputs, input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        shape = (len(instructions), self.config.tokens)
        tokens = torch.randint(self.codec.first_id, self.codec.vocabulary, shape, generator=generator)
        return self.hidden_states(inputs, tokens.to(self.device))

    def add_value_head(self, outputs: int, hidden: tuple[int, ...] | None = None) -> None:
        """Give the policy a fresh value head, zero-initialised at its end, in place of any it has.

        `outputs` V: 1 or C. `hidden`: widths of its layers, by default the config's `value_hidden`.
        """
        hidden = self.config.value_hidden if hidden is None else hidden
        self.config = replace(self.config, value_outputs=outputs, value_hidden=hidden)
        self.value_head = ValueHead(self.config.width, hidden, outputs).to(self.device)

    def freeze(self, vision: bool = True) -> dict[str, list[nn.Parameter]]:
        """See `Policy.freeze`. `vision` freezes towers and vision projector. Of a part with adapters they alone are
        trained. Parameters that take no part in the output are always frozen.
        """
        unused = {id(p) for p in self.unused()}
        adapted = bool(adapters.layers(self))
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            frozen = vision and part in ("vision_backbone", "projector")
            frozen |= adapted and part in PARTS and ".lora_" not in name
            parameter.requires_grad_(not frozen and id(parameter) not in unused)
        return self._trainable()

    def add_lora(
        self, rank: int, alpha: float | None = None, targets: Sequence[str] = (), vision: bool = False
    ) -> None:
        """See `Policy.add_lora`, and `adapters.add_lora`. Heads and projectors in files of their own stay trained."""
        unused = {id(p) for p in self.unused()}
        idle = [name for name, module in self.named_modules() if any(id(p) in unused for p in module.parameters(False))]
        frozen = [*idle, *(() if vision else ("vision_backbone.", "projector."))]
        adapters.add_lora(self, rank, alpha, targets, published=LORA_TARGETS, parts=PARTS, frozen=frozen)

    def recompute(self, enabled: bool = True) -> None:
        """See `Policy.recompute`. Only what is between transformer blocks is kept."""
        for module in self.modules():
            if isinstance(module, Tower | LeanLayer):
                module.recompute = enabled

    def compile_blocks(self, enabled: bool = True) -> None:
        """See `Policy.compile_blocks`. Blocks with FiLM stay as they are."""
        for module in self.modules():
            if isinstance(module, Block | LeanLayer):
                module.fast = enabled

    def shard_units(self) -> list[nn.Module]:
        """See `Policy.shard_units`: blocks, the projector, and heads of files of their own. Embeddings, language head
        and final norm are read outside of their modules. Raises ConfigError for a policy with adapters.
        """
        if adapters.layers(self):
            raise ConfigError(
                "placement.sharding 'full': a policy with adapters is not divided, because each pass would gather its "
                "frozen base again; use placement.sharding=none, or policy.lora.rank=0"
            )
        parts = (self.proprio_projector, self.value_head, *self.heads())
        return [
            *(unit for tower in self.towers() for unit in tower.shard_units()),
            self.projector,
            *self.language_model.model.layers,
            *(part for part in parts if part is not None),
        ]

    def heads(self) -> tuple[nn.Module | None, ...]:
        """What decides on actions in place of the language head."""
        return ()

    def _logits(self, inputs: PrismaticInputs, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Float32 logits [B, K, R] of the action rows, and the hidden states [B, K, W] they are from."""
        hidden = self.hidden_states(inputs, tokens)
        return self._action_logits(hidden), hidden

    def _action_logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [..., R] of the action rows, all that is ever computed of the language head."""
        rows = slice(self.codec.first_id, self.codec.vocabulary)
        return adapters.linear_rows(self.language_model.lm_head, hidden, rows).float()

    def _check_choice(self, inputs: PrismaticInputs, choice: Tensor, sampling: Sampling) -> None:
        """Raises ConfigError for choices that are not those of `inputs`, and for no sampling."""
        check_sampling(sampling)
        if choice.shape != (len(inputs), self.config.tokens):
            raise ConfigError(
                f"choice {list(choice.shape)}; it must be [{len(inputs)}, {self.config.tokens}], as act returned it"
            )

    def _values(self, hidden: Tensor) -> Tensor | None:
        return None if self.value_head is None else self.value_head(hidden[:, 0])

    def _noise(self, inputs: PrismaticInputs, keys: Keys | None, sampling: Sampling) -> Tensor | None:
        """Uniform numbers [B, K] of the samples' keys; None where none are needed, or they are to be drawn afresh.

        Raises ConfigError where there are not as many keys as samples, and for no sampling.
        """
        check_sampling(sampling)
        if keys is not None and len(keys) != len(inputs):
            raise ConfigError(f"keys: {len(keys)} for {len(inputs)} samples; give each sample one")
        if keys is None or sampling.temperature == 0:
            return None
        return torch.from_numpy(noise.uniform(keys, self.config.tokens)).to(self.device)

    def _decision(self, actions: Tensor, choice: Tensor, log_probs: Tensor, values: Tensor | None) -> Decision:
        """A decision of actions [B, C, A] and log-probs [B, K]."""
        return Decision(actions.float(), choice, self._by_action(log_probs), values)

    def _by_action(self, entries: Tensor) -> Tensor:
        """[B, K] to [B, C, A]."""
        return entries.unflatten(1, self.entries)
