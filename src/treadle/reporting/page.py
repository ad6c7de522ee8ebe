"""What the HTML pages share: style, sections, lists of values, films. A page is one file that holds all it shows."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from treadle.errors import OutputError
from treadle.reading import check_path, read_bytes


def fill(template: str, **values: str) -> str:
    """A template of this package, with its values; they are HTML."""
    return Template(_read(template)).substitute(values)


def frame(title: str, header: str, body: str) -> str:
    """A whole page. `title` is text; `header`, which stands below it, and `body` are HTML."""
    return fill("page.html", style=_read("style.css"), title=escape(title), header=header, body=body.rstrip("\n"))


def render_page(title: str, status: str, sections: Sequence[tuple[str, str]]) -> str:
    """A page of sections, each a heading and HTML; `title` and `status` are text."""
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n{content}" for heading, content in sections if content)
    return frame(title, f'<p class="status">{escape(status)}</p>', body)


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values."""
    if not values:
        return missing("Not recorded yet.")
    return f"<dl>{''.join(f'<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>' for k, v in values.items())}</dl>"


def missing(text: str) -> str:
    """A sentence in place of what is not there."""
    return f'<p class="missing">{escape(text)}</p>'


def details(title: str, content: str) -> str:
    """HTML that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def film(folder: Path, name: str) -> str | None:
    """A film inside `folder`, as a part of the page; None where it is not there, or is a link. Only the last part of
    its name counts, so that no file outside the folder is ever read. Raises OutputError.
    """
    path = folder / check_path(Path(name).name, "videos.json: file", OutputError)
    if path.is_symlink() or not path.is_file():
        return None
    data = base64.b64encode(read_bytes(path, OutputError)).decode()
    return f'<video src="data:video/mp4;base64,{data}" autoplay loop muted playsinline controls></video>'


def _read(name: str) -> str:
    """The text of a file of this package."""
    return files("treadle.reporting").joinpath(name).read_text(encoding="utf-8")
