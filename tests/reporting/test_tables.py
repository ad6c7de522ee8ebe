"""Tables in three forms."""

from rich.console import Console

from treadle.reporting.tables import Grid, Row, interval, percent, points

GRID = Grid(
    "Fruit <b>",
    ["what", "count", "note"],
    [Row(["apple | pear", "3", "a<b"], "strong"), Row(["half", "1.5", ""], "faint")],
    note="By [weight].",
    optional=("count",),
    text=("note",),
)


def test_markdown():
    assert GRID.to_markdown() == (
        "## Fruit <b>\n\n| what | count | note |\n| --- | ---: | --- |\n| apple \\| pear | 3 | a<b |\n"
        "| half | 1.5 |   |\n\nBy [weight].\n"
    )


def test_html_is_escaped():
    assert GRID.to_html() == (
        '<div class="scroll"><table class="evaluation"><tr><th>what</th><th>count</th><th class="text">note</th></tr>'
        '<tr class="suite"><th>apple | pear</th><td>3</td><td class="text">a&lt;b</td></tr>'
        '<tr class="setting"><th>half</th><td>1.5</td><td class="text"></td></tr></table></div>'
        '<p class="note">By [weight].</p>'
    )


def test_a_narrow_terminal_leaves_optional_columns_out():
    def shown(width: int) -> str:
        console = Console(width=width, force_terminal=False)
        with console.capture() as captured:
            console.print(GRID.to_rich(width))
        return captured.get()

    assert "count" in shown(100)
    assert "count" not in shown(60)
    assert "By [weight]." in shown(60)
    assert "  half" in shown(60)


def test_text_is_never_squeezed_to_nothing_nor_numbers_cut():
    grid = Grid("", ["what", *"abcdefgh"], [Row(["apples and pears", *(["123456"] * 8)])])
    assert grid.least_width(60) == 12 + 8 * 6 + 9 * 3
    console = Console(width=grid.least_width(60), force_terminal=False)
    with console.capture() as captured:
        console.print(grid.to_rich(60))
    assert "apples and" in captured.get()
    assert captured.get().count("123456") == 8


def test_numbers():
    assert (percent(0.98765), interval((0.0, 0.12345)), points(-0.0123)) == ("98.8 %", "0.0 to 12.3", "-1.2")
