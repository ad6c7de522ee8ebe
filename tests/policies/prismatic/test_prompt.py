from pathlib import Path

import pytest
from tokenizers import Tokenizer

from treadle.errors import ConfigError
from treadle.policies.prismatic.prompt import SPACE, PromptTokenizer, build_tokenizer, prompt


def read(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def test_prompt_is_the_published_one() -> None:
    expected = "In: What action should the robot take to pick up the cube?\nOut:"
    assert prompt("Pick up the Cube") == expected


def test_known_words_are_one_token(tmp_path: Path) -> None:
    size = build_tokenizer(["put the red cube on the white plate"], tmp_path)
    prompts = PromptTokenizer(read(tmp_path), size, 24)
    ids = prompts.ids("put the red cube on the white plate")
    # <s>, the phrase before, eight words, the phrase after, and the ending token.
    assert len(ids) == 12
    assert (ids[0], ids[-1]) == (1, prompts.end_id)
    assert max(ids) < 512
    assert size == 512 + 256


def test_unknown_words_are_their_bytes(tmp_path: Path) -> None:
    build_tokenizer(["lift the cube"], tmp_path)
    tokenizer = read(tmp_path)
    encoded = tokenizer.encode("lift the é-cube")
    assert encoded.tokens == [
        "<s>",
        "▁lift",
        "▁the",
        SPACE,
        "<0xC3>",
        "<0xA9>",
        "<0x2D>",
        *[f"<0x{ord(c):02X}>" for c in "cube"],
    ]
    assert tokenizer.decode(encoded.ids) == "lift the é-cube"


def test_padding_and_mask(tmp_path: Path) -> None:
    size = build_tokenizer(["lift the cube"], tmp_path)
    prompts = PromptTokenizer(read(tmp_path), size, 8)
    ids, mask = prompts.encode(["lift the cube", "lift"])
    assert ids.shape == mask.shape == (2, 8)
    assert mask.sum(1).tolist() == [7, 5]
    assert ids[1, 5:].tolist() == [size] * 3


def test_a_vocabulary_too_small(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text_tokens: 100; at least 262"):
        build_tokenizer(["lift"], tmp_path, text_tokens=100)
