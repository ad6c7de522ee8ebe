"""Lines that troubleshooting quotes are those that Treadle says; `...` stands for what varies."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "\0"


@cache
def texts() -> list[str]:
    """Every text of the source, with a gap for what an f-string fills in."""
    found: list[str] = []
    for path in sorted((ROOT / "src" / "treadle").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def is_said(quote: str) -> bool:
    """Whether some text has the quote's words in order, and where the quote varies, at least one gap or more text."""
    pieces = [re.escape(piece.strip()) for piece in re.split(r"\.\.\.|\b[A-Z]{2,}\b(?:/\b[A-Z]{2,}\b)?", quote)]
    pattern = re.compile(".+?".join(piece for piece in pieces if piece), re.DOTALL)
    return any(pattern.search(text) for text in texts())


def quotes() -> list[str]:
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    return [row for row in rows if not row.startswith(("treadle ", "make "))]


@pytest.mark.parametrize("quote", quotes())
def test_a_quoted_line_is_one_that_is_said(quote: str):
    assert is_said(quote)


def test_a_line_that_nobody_says_is_found():
    assert len(quotes()) > 12
    assert is_said("no checkpoint folder ...; make it with: ...")
    assert not is_said("no checkpoint folder ...; bake it with: ...")
    assert not is_said("make it with: ...; no checkpoint folder ...")
