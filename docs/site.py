"""What the site needs beside its pages: links that leave the folder of the docs lead to the repository.

`TREADLE_REPOSITORY` is its address, such as `https://example.org/treadle/blob/main`; without it such links are text.
"""

import os
import re
from typing import Any

_OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page."""
    repository = os.environ.get("TREADLE_REPOSITORY", "").rstrip("/")

    def place(found: re.Match[str]) -> str:
        mark, text, path = found.groups()
        return f"{mark}[{text}]({repository}/{path})" if repository else text

    return _OUTSIDE.sub(place, markdown)
