"""Tables in three forms."""

from rich.console import Console, RenderableType

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


def printed(table: RenderableType, width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_optional_columns_are_left_out_where_they_do_not_fit():
    assert "count" in printed(GRID.to_rich(30), 30)
    narrow = printed(GRID.to_rich(29), 29)
    assert "count" not in narrow
    assert "By [weight]." in narrow
    assert "  half" in narrow


def test_names_stay_whole_where_they_leave_room():
    grid = Grid("", ["setting", "value"], [Row(["simulator.options.settle_gripper", "x " * 40])], text=("value",))
    assert "simulator.options.settle_gripper" in printed(grid.to_rich(80), 80)
    assert grid.least_width(80) == 32 + 12 + 2 * 3


def test_records_fit_any_width():
    said = printed(GRID.to_records(), 24)
    assert [line.rstrip() for line in said.splitlines()] == [
        "Fruit <b>",
        "  apple | pear: count 3,",
        "  note a<b",
        "    half: count 1.5",
        "By [weight].",
        "",
    ]


def test_text_is_never_squeezed_to_nothing_nor_numbers_cut():
    grid = Grid("", ["what", *"abcdefgh"], [Row(["apples and pears", *(["123456"] * 8)])])
    assert grid.least_width(60) == 16 + 8 * 6 + 9 * 3
    assert grid.least_width(30) == 12 + 8 * 6 + 9 * 3
    console = Console(width=grid.least_width(60), force_terminal=False)
    with console.capture() as captured:
        console.print(grid.to_rich(60))
    assert "apples and" in captured.get()
    assert captured.get().count("123456") == 8


def test_numbers():
    assert (percent(0.98765), interval((0.0, 0.12345)), points(-0.0123)) == ("98.8 %", "0.0 to 12.3", "-1.2")
