"""The published prompts, tokenised once per instruction, and a small Llama-like tokenizer for tiny policies."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from treadle.errors import ConfigError

HEAD = "In: What action should the robot take to "
TAIL = "?\nOut:"
TOKENIZER = "tokenizer.json"
SPACE = "\u2581"
"""Llama's space; as a token of its own (29871 in Llama-2) it ends every prompt."""

PromptStyle = Literal["llama2", "vicuna"]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: What action should the robot take to "
)
PROMPTS: dict[PromptStyle, tuple[str, str]] = {"llama2": (HEAD, TAIL), "vicuna": (VICUNA, "? ASSISTANT:")}
"""What stands before and behind the instruction: of OpenVLA, and of its first release (v0.1), which was a Vicuna."""


def prompt(instruction: str, style: PromptStyle = "llama2") -> str:
    """The published prompt of an instruction."""
    head, tail = PROMPTS[style]
    return f"{head}{instruction.lower()}{tail}"


class PromptTokenizer:
    """Instructions to padded prompt tokens; each instruction is tokenised once."""

    def __init__(self, tokenizer: Tokenizer, pad_id: int, length: int, style: PromptStyle = "llama2") -> None:
        end_id = tokenizer.token_to_id(SPACE)
        if end_id is None:
            raise ConfigError(f"tokenizer: no token {SPACE!r}, which ends every prompt")
        self.end_id = end_id
        self.pad_id = pad_id
        self.length = length
        self.style: PromptStyle = style
        self._tokenizer = tokenizer
        self._rows: dict[str, tuple[Tensor, int]] = {}

    def ids(self, instruction: str) -> list[int]:
        """Token ids of one prompt, unpadded, from the beginning-of-sequence token to the ending token."""
        ids = self._tokenizer.encode(prompt(instruction, self.style)).ids
        return ids if ids[-1] == self.end_id else [*ids, self.end_id]

    def encode(self, instructions: list[str]) -> tuple[Tensor, Tensor]:
        """Ids [B, length] int64, right-padded, and their mask [B, length] bool.

        Raises ConfigError for a prompt longer than `length`.
        """
        rows = [self._row(instruction) for instruction in instructions]
        lengths = torch.tensor([length for _, length in rows])
        return torch.stack([row for row, _ in rows]), torch.arange(self.length) < lengths[:, None]

    def _row(self, instruction: str) -> tuple[Tensor, int]:
        """Padded ids [length] and how many of them are the prompt; its padding may be a word of the vocabulary."""
        if instruction not in self._rows:
            ids = self.ids(instruction)
            if len(ids) > self.length:
                raise ConfigError(
                    f"prompt_length {self.length} is too short: {instruction!r} has {len(ids)} tokens; "
                    f"raise prompt_length to {len(ids)} or shorten the instruction"
                )
            self._rows[instruction] = (torch.tensor(ids + [self.pad_id] * (self.length - len(ids))), len(ids))
        return self._rows[instruction]


def build_tokenizer(texts: Iterable[str], directory: Path, text_tokens: int = 512) -> int:
    """Write tokenizer files of a tiny policy to `directory`; returns the vocabulary size before padding.

    The prompt's fixed phrases and the most frequent words of `texts` (instructions) are one token each; any other word
    falls back to its bytes. Ids: 0-2 special, 3-258 bytes, then phrases and words below `text_tokens`, then the 256
    action tokens, then `<PAD>` at the returned size.
    """
    words = Counter(word for text in texts for word in re.findall(r"\w+", text.lower()))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, HEAD, TAIL]
    room = text_tokens - len(tokens)
    if room < 0:
        raise ConfigError(f"text_tokens: {text_tokens}; at least {len(tokens)} are needed")
    tokens += [SPACE + word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0]))[:room]]
    tokens += [f"<unused_{index}>" for index in range(len(tokens), text_tokens)]
    tokens += [f"<action_{index}>" for index in range(256)]
    size = len(tokens)
    tokens.append("<PAD>")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[],
            unk_token="<unk>",  # noqa: S106
            byte_fallback=True,
            # Words are looked up whole, without the chain of merges that would fill the vocabulary with prefixes.
            ignore_merges=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(SPACE, "merged_with_next"), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<PAD>"])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in (HEAD, TAIL)])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / TOKENIZER))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<PAD>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", "model_max_length": 2048}
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, **special}, indent=2))
    (directory / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    return size
