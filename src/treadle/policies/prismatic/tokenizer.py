"""The tokenizer of a directory: the ids are those that transformers' `AutoTokenizer` gives, or it is refused.

`tokenizer.json` says how text becomes ids. The files beside it may say otherwise, and versions of transformers differ
in which one they follow; so they must agree.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from tokenizers import Tokenizer

from treadle.errors import CheckpointError
from treadle.policies.prismatic.prompt import TOKENIZER, prompt
from treadle.reading import library, parse_json, shown
from treadle.tables import Table, read_table

SETTINGS = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
ADDED = "added_tokens.json"
BEGINNING = "<s>"
"""The token that begins every prompt, of Llama and Vicuna."""


class AddedToken(Table):
    """A token with its rules for spaces around it."""

    ignored: ClassVar[frozenset[str]] = frozenset(["__type"])

    content: str
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    single_word: bool = False
    special: bool = False


Named = str | AddedToken | None


class SpecialTokens(Table):
    """Tokens that play a part. Each must be one that `tokenizer.json` adds to its vocabulary."""

    bos_token: Named = None
    eos_token: Named = None
    unk_token: Named = None
    pad_token: Named = None
    sep_token: Named = None
    cls_token: Named = None
    mask_token: Named = None
    additional_special_tokens: list[str | AddedToken] | None = None
    extra_special_tokens: list[str | AddedToken] | dict[str, str | AddedToken] | None = None

    def tokens(self) -> Iterator[tuple[str, str]]:
        """Each key with the text of its token."""
        for name in SpecialTokens.model_fields:
            value = getattr(self, name)
            several = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            for token in several:
                if token is not None:
                    yield name, token if isinstance(token, str) else token.content


class TokenizerSettings(SpecialTokens):
    """tokenizer_config.json."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            *(
                "padding_side",
                "truncation_side",
                "model_max_length",
                "processor_class",
                "legacy",
                "auto_map",
                "backend",
            ),
            *("clean_up_tokenization_spaces", "use_default_system_prompt", "spaces_between_special_tokens", "use_fast"),
            *("sp_model_kwargs", "chat_template", "name_or_path", "special_tokens_map_file", "tokenizer_file"),
            *("model_input_names", "model_specific_special_tokens", "is_local", "split_special_tokens"),
            *("max_length", "pad_to_multiple_of", "pad_token_type_id", "stride", "truncation_strategy", "padding"),
            *("truncation", "local_files_only"),
        ]
    )

    tokenizer_class: (
        Literal[
            "LlamaTokenizer",
            "LlamaTokenizerFast",
            "PreTrainedTokenizer",
            "PreTrainedTokenizerFast",
            "TokenizersBackend",
        ]
        | None
    ) = None
    add_bos_token: Literal[True] | None = None
    add_eos_token: Literal[False] | None = None
    add_prefix_space: Literal[True] | None = None
    do_lower_case: Literal[False] | None = None
    added_tokens_decoder: dict[Annotated[str, Field(pattern="^[0-9]+$")], AddedToken] = {}


def read_tokenizer(files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of the files. It neither shortens nor pads, whatever was saved. Raises CheckpointError where a file
    is missing, corrupt, or says something that the others do not.
    """
    if TOKENIZER not in files:
        raise CheckpointError(f"{TOKENIZER}: missing; there are: {', '.join(sorted(files)) or 'none'}")
    with library(TOKENIZER, CheckpointError, "a tokenizer"):
        tokenizer = Tokenizer.from_str(files[TOKENIZER].decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        raise CheckpointError(f"{TOKENIZER}: model.dropout: found {tokenizer.model.dropout}; allowed: null")
    _check_added(tokenizer, files)
    with library(TOKENIZER, CheckpointError, "a tokenizer that splits the prompts"):
        _check_beginning(tokenizer)
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, words: int, rows: int, padding: int) -> None:
    """Raises CheckpointError unless the tokenizer's own tokens, its padding aside, end at `words`, where padded rows
    begin, and every token it adds has one of the `rows`.
    """
    own = tokenizer.get_vocab_size(with_added_tokens=False)
    own -= own == padding + 1
    most = max(tokenizer.get_vocab_size(with_added_tokens=True), *tokenizer.get_added_tokens_decoder(), 0)
    if own != words or most > rows:
        raise CheckpointError(
            f"{TOKENIZER}: {own} tokens, {most} with added ones, but config.json has text_config.vocab_size {rows}, of "
            f"which {words} are words and actions (less pad_to_multiple_of); they are of different checkpoints"
        )


def _check_added(tokenizer: Tokenizer, files: Mapping[str, bytes]) -> None:
    """What the files beside `tokenizer.json` add must be added there too."""
    known = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}
    settings = read_table(TokenizerSettings, _object(files, SETTINGS), SETTINGS)
    for index, token in settings.added_tokens_decoder.items():
        if known.get(int(index)) != token.content:
            raise CheckpointError(
                f"{SETTINGS}: added_tokens_decoder.{index}: found {shown(token.content)}; {TOKENIZER} has "
                f"{shown(known.get(int(index)))}; they must agree"
            )
    special = read_table(SpecialTokens, _object(files, SPECIAL), SPECIAL)
    for file, table in ((SETTINGS, settings), (SPECIAL, special)):
        for key, text in table.tokens():
            if text not in known.values():
                added = ", ".join(known.values())
                raise CheckpointError(
                    f"{file}: {key}: found {shown(text)}; allowed: a token that {TOKENIZER} adds: {shown(added, 300)}"
                )
            if key == "bos_token" and text != BEGINNING:
                raise CheckpointError(f"{file}: {key}: found {shown(text)}; allowed: {shown(BEGINNING)}")
    for text, index in _object(files, ADDED).items():
        if not isinstance(index, int) or known.get(index) != text:
            raise CheckpointError(
                f"{ADDED}: found {shown(text)} as {shown(index)}; {TOKENIZER} has "
                f"{shown(known.get(index) if isinstance(index, int) else None)}; they must agree"
            )


def _check_beginning(tokenizer: Tokenizer) -> None:
    """Every prompt is the beginning token and then its text."""
    first = tokenizer.token_to_id(BEGINNING)
    example = prompt("pick up the cube")
    ids, text = (tokenizer.encode(example, add_special_tokens=whole).ids for whole in (True, False))
    if first is None or ids != [first, *text]:
        tokens = tokenizer.encode(example).tokens
        raise CheckpointError(
            f"{TOKENIZER}: post_processor: a prompt begins with {tokens[0]!r} and ends with {tokens[-1]!r}; allowed: "
            f"{BEGINNING!r} in front, once, and nothing behind"
        )


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    content = parse_json(files[name], name, CheckpointError)
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: holds a {type(content).__name__}, not an object")
    return content
