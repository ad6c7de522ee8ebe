"""Instructions to token ids, by the tokenizer of the language model.

A LeRobot directory has none and names a model of the hub instead; Treadle writes the tokenizer's files beside.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers.utils.hub import cached_file

from treadle.errors import CheckpointError, ConfigError
from treadle.reading import library, parse_json, shown

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""What is read and written back; the first must be there."""


def find_tokenizer(directory: Path, named: str | None, given: str | None) -> dict[str, bytes]:
    """The tokenizer's files: of the folder that the user gave, of the directory, or of the model that its config names,
    a folder or downloaded earlier. Raises CheckpointError.
    """
    folders = [Path(given)] if given is not None else [directory]
    if given is None and named:
        folders += [Path(named)]
        cached = _find_downloaded(named) if named.count("/") == 1 else None
        folders += [Path(cached).parent] if cached else []
    for folder in folders:
        if (folder / FILES[0]).is_file():
            return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    if given is not None:
        raise CheckpointError(f"policy.options.tokenizer {given!r}: no {FILES[0]} there")
    raise CheckpointError(
        f"{directory}: no {FILES[0]}, and the model {named!r} (vlm_model_name in config.json) is neither a folder here "
        f"nor downloaded: run `hf download {named} {' '.join(FILES)}`, or set policy.options.tokenizer to a folder "
        "with these files"
    )


def _find_downloaded(model: str) -> str | None:
    """The tokenizer's file in transformers' cache; None where it is not there. Nothing is downloaded."""
    return cached_file(
        model,
        FILES[0],
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


class PromptReader:
    """Instructions to padded ids; each is tokenised once.

    Args:
        files: the tokenizer's, by name.
        length: ids of a prompt, with padding behind them.
        vocabulary: words that the language model has.
    """

    def __init__(self, files: Mapping[str, bytes], length: int, vocabulary: int) -> None:
        self.length = length
        self._tokenizer = _parse(files)
        self._pad = _padding(files, self._tokenizer)
        if max(self._tokenizer.get_vocab_size(), self._pad + 1) > vocabulary:
            raise CheckpointError(
                f"{FILES[0]}: {self._tokenizer.get_vocab_size()} tokens; the weights have {vocabulary} words: they are "
                "of different models"
            )
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}

    def read(self, instructions: list[str]) -> tuple[Tensor, Tensor]:
        """Ids [B, length] and their mask [B, length] bool. Raises ConfigError for an instruction that is too long."""
        rows = [self._row(text) for text in instructions]
        return torch.stack([ids for ids, _ in rows]), torch.stack([mask for _, mask in rows])

    def _row(self, text: str) -> tuple[Tensor, Tensor]:
        if text not in self._rows:
            ids = self._tokenizer.encode(text if text.endswith("\n") else f"{text}\n").ids
            if len(ids) > self.length:
                raise ConfigError(
                    f"instruction {text!r}: {len(ids)} tokens with its new line; the policy reads {self.length} "
                    "(tokenizer_max_length), and lerobot would cut off the rest; shorten it"
                )
            padded = torch.tensor(ids + [self._pad] * (self.length - len(ids)))
            self._rows[text] = padded, torch.arange(self.length) < len(ids)
        return self._rows[text]


def _parse(files: Mapping[str, bytes]) -> Tokenizer:
    with library(FILES[0], CheckpointError, "a tokenizer"):
        tokenizer = Tokenizer.from_str(files[FILES[0]].decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _padding(files: Mapping[str, bytes], tokenizer: Tokenizer) -> int:
    """The id of padding, which the network never sees; 0 where the files name none."""
    for name in FILES[1:]:
        settings = parse_json(files[name], name, CheckpointError) if name in files else {}
        token: Any = settings.get("pad_token") if isinstance(settings, dict) else None
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None:
            index = tokenizer.token_to_id(text) if isinstance(text, str) else None
            if index is None:
                raise CheckpointError(f"{name}: pad_token: found {shown(token)}; allowed: a token of {FILES[0]}")
            return index
    return 0
