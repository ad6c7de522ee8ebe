"""Ids are those of transformers' `AutoTokenizer`, or the files are refused."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from policy_samples import Official
from transformers import AutoTokenizer

from treadle.errors import CheckpointError
from treadle.policies.checkpoint import read_carried
from treadle.policies.prismatic.prompt import PromptStyle, PromptTokenizer, prompt
from treadle.policies.prismatic.tokenizer import check_vocabulary, read_tokenizer

INSTRUCTIONS = ["Pick up the red cup", "", "put the ünïcode\tin  the <s> drawer", "▁ </s> robot cup", "x " * 40]
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(official_openvla: Official, tmp_path: Path) -> Path:
    for name in (*FILES, "config.json"):
        (tmp_path / name).write_bytes((official_openvla.directory / name).read_bytes())
    return tmp_path


def edit(path: Path, change: Edit) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


def their_ids(folder: Path, style: PromptStyle = "llama2") -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoTokenizer.from_pretrained(folder)
    ids = [theirs(prompt(instruction, style)).input_ids for instruction in INSTRUCTIONS]
    # As the official `predict_action` ends them.
    return [row if row[-1] == 29871 else [*row, 29871] for row in ids]


def my_ids(folder: Path, style: PromptStyle = "llama2") -> list[list[int]]:
    prompts = PromptTokenizer(read_tokenizer(read_carried(folder)), 32000, 64, style)
    return [prompts.ids(instruction) for instruction in INSTRUCTIONS]


TRUNCATION = {"direction": "Right", "max_length": 10, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 80},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<unk>",
}
WORD = {"content": "cup", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", lambda c: None),
        ("tokenizer.json", lambda c: c.update(truncation=TRUNCATION)),
        ("tokenizer.json", lambda c: c.update(padding=PADDING)),
        ("tokenizer.json", lambda c: c.update(normalizer=None)),
        ("tokenizer.json", lambda c: c["normalizer"]["normalizers"].append({"type": "Lowercase"})),
        ("tokenizer.json", lambda c: c.update(pre_tokenizer={"type": "Whitespace"})),
        ("tokenizer.json", lambda c: c["added_tokens"].append({"id": 32001, **WORD})),
        ("tokenizer_config.json", lambda c: c.update(padding_side="left", truncation_side="left", model_max_length=5)),
        ("tokenizer_config.json", lambda c: c.update(tokenizer_class="PreTrainedTokenizerFast", legacy=True)),
        ("tokenizer_config.json", lambda c: c.pop("add_bos_token")),
        ("tokenizer_config.json", lambda c: c.clear()),
        ("special_tokens_map.json", lambda c: c.clear()),
    ],
)
def test_ids_are_those_of_transformers(folder: Path, file: str, change: Edit) -> None:
    edit(folder / file, change)
    assert my_ids(folder) == their_ids(folder)


def test_the_first_openvla_is_asked_as_a_vicuna(folder: Path) -> None:
    """OpenVLA v0.1: the prompt of the official evaluation, then the same last token."""
    assert prompt("Lift the Cup", "vicuna") == (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: What action should the robot take to lift the cup? ASSISTANT:"
    )
    assert my_ids(folder, "vicuna") == their_ids(folder, "vicuna")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", lambda c: c["model"].update(dropout=0.5), r"model\.dropout: found 0\.5; allowed: null"),
        (
            "tokenizer.json",
            lambda c: c.update(post_processor=None),
            "post_processor: a prompt begins with '▁.*; allowed",
        ),
        ("tokenizer_config.json", lambda c: c.update(add_bos_token=False), "add_bos_token: found false; allowed: True"),
        ("tokenizer_config.json", lambda c: c.update(add_eos_token=True), "add_eos_token: found true; allowed: False"),
        ("tokenizer_config.json", lambda c: c.update(tokenizer_class="T5Tokenizer"), 'tokenizer_class: found "T5'),
        ("tokenizer_config.json", lambda c: c.update(do_lower_case=True), "do_lower_case: found true"),
        ("tokenizer_config.json", lambda c: c.update(bos_token="</s>"), 'bos_token: found "</s>"; allowed: "<s>"'),
        ("tokenizer_config.json", lambda c: c.update(unk_token="cup"), 'unk_token: found "cup"; allowed: a token that'),
        (
            "tokenizer_config.json",
            lambda c: c.update(additional_special_tokens=["cup"]),
            "additional_special_tokens: f",
        ),
        (
            "tokenizer_config.json",
            lambda c: c["added_tokens_decoder"].update({"32001": WORD}),
            r'added_tokens_decoder\.32001: found "cup"; tokenizer\.json has null; they must agree',
        ),
        ("tokenizer_config.json", lambda c: c.update(vowels=3), "unknown key 'vowels'"),
        ("special_tokens_map.json", lambda c: c.update(eos_token="cup"), 'eos_token: found "cup"'),
        ("added_tokens.json", lambda c: c.update(cup=32001), 'found "cup" as 32001; tokenizer.json has null'),
    ],
)
def test_files_that_disagree(folder: Path, file: str, change: Edit, message: str) -> None:
    edit(folder / file, change)
    with pytest.raises(CheckpointError, match=rf"^{file}: {message}"):
        read_tokenizer(read_carried(folder))


def test_vocabulary(folder: Path) -> None:
    tokenizer = read_tokenizer(read_carried(folder))
    check_vocabulary(tokenizer, 32000, 32064, 32000)
    # Padding may be a word: it never enters the model.
    check_vocabulary(tokenizer, 32000, 32064, 2)
    for words, rows in ((31936, 32064), (32032, 32064), (32000, 32000)):
        with pytest.raises(CheckpointError, match=rf"32000 tokens, 32001 with added ones, .*vocab_size {rows}, of"):
            check_vocabulary(tokenizer, words, rows, 32000)


def test_padding_that_is_a_word_is_no_prompt(folder: Path) -> None:
    """The mask goes by the prompt's length: here the padding is the token that begins it."""
    prompts = PromptTokenizer(read_tokenizer(read_carried(folder)), 1, 40)
    ids, mask = prompts.encode(["lift"])
    assert mask[0].tolist() == [True] * len(prompts.ids("lift")) + [False] * (40 - len(prompts.ids("lift")))
    assert ids[0, ~mask[0]].unique().tolist() == [1]
