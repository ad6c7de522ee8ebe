"""Tables, described once and shown on a terminal, in Markdown and in HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Kind = Literal["plain", "strong", "faint"]
NARROW = 72
"""Terminals with fewer columns are not shown optional columns."""
NAMES = 0.45
"""Share of a terminal that names take at most before they are broken."""
SHORT = 12
"""Characters that text has at least in a narrow terminal, if it has so many."""
_STYLES = {"plain": "", "strong": "bold", "faint": "dim"}
_CLASSES = {"plain": "", "strong": ' class="suite"', "faint": ' class="setting"'}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; the first cell is its name."""

    cells: Sequence[str]
    kind: Kind = "plain"


@dataclass(slots=True)
class Grid:
    """A table. The first column is text, the others are numbers."""

    title: str
    head: Sequence[str]
    rows: list[Row] = field(default_factory=list[Row])
    note: str = ""
    """A sentence or two below the table."""
    optional: Sequence[str] = ()
    """Columns that a narrow terminal leaves out."""
    text: Sequence[str] = ()
    """Further columns that are text."""

    def to_rich(self, width: int) -> RenderableType:
        """For a terminal of so many columns."""
        shown = self._shown(width)
        table = Table(
            box=box.SIMPLE_HEAD, title=Text(self.title) if self.title else None, title_justify="left",
            title_style="bold", pad_edge=False,
        )  # fmt: skip
        for i in shown:
            is_text = self._is_text(i)
            longest = max(len(line[i]) for line in [self.head, *(row.cells for row in self.rows)])
            # Names stay whole where they leave room for the rest.
            whole = longest if i == 0 and longest <= NAMES * width else None
            table.add_column(
                self.head[i],
                justify="left" if is_text else "right",
                no_wrap=not is_text,
                overflow="fold",
                min_width=whole,
            )
        for row in self.rows:
            indent = "  " if row.kind == "faint" else ""
            cells = [Text((indent if i == 0 else "") + row.cells[i]) for i in shown]
            table.add_row(*cells, style=_STYLES[row.kind])
        return Group(table, Text(f"{self.note}\n", style="dim")) if self.note else table

    def least_width(self, width: int) -> int:
        """Columns that a terminal of `width` columns would need at least, so that no number is cut."""
        most = [
            max(len(line[i]) for line in [self.head, *(row.cells for row in self.rows)]) for i in self._shown(width)
        ]
        least = [min(SHORT, n) if self._is_text(i) else n for i, n in zip(self._shown(width), most, strict=True)]
        return sum(least) + 3 * len(least)

    def to_markdown(self) -> str:
        """A heading, the table and its note."""
        align = ["---" if self._is_text(i) else "---:" for i in range(len(self.head))]
        lines = [self.head, align, *(row.cells for row in self.rows)]
        body = "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)
        parts = [f"## {self.title}"] if self.title else []
        return "\n\n".join([*parts, body, *([self.note] if self.note else [])]) + "\n"

    def to_html(self) -> str:
        """The table and its note; the heading is the page's."""
        head = "".join(f"<th{self._class(i)}>{escape(name)}</th>" for i, name in enumerate(self.head))
        rows = [f"<tr>{head}</tr>"]
        for row in self.rows:
            first, *others = row.cells
            cells = "".join(f"<td{self._class(i)}>{escape(cell)}</td>" for i, cell in enumerate(others, start=1))
            rows.append(f"<tr{_CLASSES[row.kind]}><th>{escape(first)}</th>{cells}</tr>")
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return f'<div class="scroll"><table class="evaluation">{"".join(rows)}</table></div>{note}'

    def _shown(self, width: int) -> list[int]:
        return [i for i, name in enumerate(self.head) if width >= NARROW or name not in self.optional]

    def _is_text(self, column: int) -> bool:
        return column == 0 or self.head[column] in self.text

    def _class(self, column: int) -> str:
        return ' class="text"' if self.head[column] in self.text else ""


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{share * 100:.1f} %"


def interval(ci95: Sequence[float]) -> str:
    """An interval of shares, in percent."""
    low, high = ci95
    return f"{low * 100:.1f} to {high * 100:.1f}"


def points(difference: float) -> str:
    """A difference of shares, in points."""
    return f"{difference * 100:+.1f}"


def _plain(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|") or " "
