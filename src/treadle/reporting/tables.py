"""Tables, described once and shown on a terminal, in Markdown and in HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

Kind = Literal["plain", "strong", "faint"]
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
    """Columns that a terminal leaves out where they do not fit."""
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
            table.add_column(
                self.head[i],
                justify="left" if is_text else "right",
                no_wrap=not is_text,
                overflow="fold",
                min_width=self._least(i, width),
            )
        for row in self.rows:
            indent = "  " if row.kind == "faint" else ""
            cells = [Text((indent if i == 0 else "") + row.cells[i]) for i in shown]
            table.add_row(*cells, style=_STYLES[row.kind])
        return Group(table, Text(f"{self.note}\n", style="dim")) if self.note else table

    def to_records(self) -> RenderableType:
        """For a terminal that is narrower than the table: each row in lines, with the names of what it has."""
        parts: list[RenderableType] = [Text(self.title, "bold")] if self.title else []
        for row in self.rows:
            indent = 4 if row.kind == "faint" else 2
            name, *cells = row.cells
            said = ", ".join(f"{head} {cell}".strip() for head, cell in zip(self.head[1:], cells, strict=True) if cell)
            line = Text.assemble((name, "" if row.kind == "faint" else "bold"), f": {said}" if said else "")
            parts.append(Padding(line, (0, 0, 0, indent)))
        return Group(*parts, Text(f"{self.note}\n" if self.note else "", style="dim"))

    def least_width(self, width: int) -> int:
        """Columns that a terminal of `width` columns would need at least, so that no number is cut."""
        return self._needed(self._shown(width), width)

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
        every = range(len(self.head))
        fits = self._needed(every, width) <= width
        return [i for i in every if fits or self.head[i] not in self.optional]

    def _needed(self, columns: Sequence[int], width: int) -> int:
        return sum(self._least(i, width) + 3 for i in columns)

    def _least(self, column: int, width: int) -> int:
        """Characters of a column at least: numbers stay whole, and names where they leave room for the rest."""
        indent = 2 * any(row.kind == "faint" for row in self.rows)
        most = max(len(line[column]) for line in [self.head, *(row.cells for row in self.rows)])
        if column == 0:
            return most + indent if most + indent <= NAMES * width else min(SHORT, most)
        return min(SHORT, most) if self._is_text(column) else most

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
