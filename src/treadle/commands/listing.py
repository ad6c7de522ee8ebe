"""Names with what they are, as lists for people and for pipes."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

LEAST = 44
"""Characters that text has at least beside a name; in less room it stands below the name."""


def show_listing(console: Console, groups: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Print groups of names, each with what it is: in a pipe a line each, on a terminal as its width allows."""
    longest = max((len(name) for rows in groups.values() for name, _ in rows), default=0)
    shown = [(title, rows) for title, rows in groups.items() if rows]
    for number, (title, rows) in enumerate(shown):
        if title:
            console.print(Text(f"\n{title}" if number else title, "bold"), soft_wrap=True)
        if not console.is_terminal:
            for name, what in rows:
                console.print(Text(f"  {name:<{longest}}  {what}"), soft_wrap=True)
        elif console.width >= longest + LEAST + 4:
            table = Table.grid(padding=(0, 2))
            table.add_column(no_wrap=True, min_width=longest + 2)
            table.add_column()
            for name, what in rows:
                table.add_row(Text(f"  {name}", "cyan"), Text(what))
            console.print(table)
        else:
            for name, what in rows:
                console.print(Text(f"  {name}", "cyan"), soft_wrap=True)
                console.print(Padding(Text(what), (0, 0, 0, 6)))
