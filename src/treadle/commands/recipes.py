"""What `treadle recipes` does."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from treadle.commands.evaluation import show
from treadle.config.describe import toml_text
from treadle.config.protocols import find_protocol
from treadle.config.recipes import Recipe, read_recipe, recipes
from treadle.config.run_directory import flatten
from treadle.reporting.tables import Grid, Row


def recipes_table() -> Table:
    """The recipes that are installed."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("recipe", style="bold", no_wrap=True)
    table.add_column("what")
    for name, summary in recipes().items():
        table.add_row(name, Text(summary))
    return table


def show_recipe(name: str, console: Console) -> None:
    """Settings of a recipe, and what is no setting of it. Raises ConfigError."""
    recipe = read_recipe(name)
    console.print(Text(recipe.summary))
    show(console, [settings_grid(recipe)])
    about = recipe.about
    cards = "" if about.devices is None else f"{about.devices} of 80 GB"
    fetched = f"hf download {about.checkpoint}" if about.checkpoint else ""
    facts = (("Source", about.source), ("Checkpoint", fetched), ("Graphics cards", cards))
    for title, said in (*facts, *(("Otherwise than published", line) for line in about.differs)):
        if said:
            console.print(Text.assemble((f"{title}: ", "bold"), said), soft_wrap=True)


def settings_grid(recipe: Recipe) -> Grid:
    """Every setting that a recipe states, beside those of its protocol that it has otherwise."""
    below = {} if recipe.protocol is None else flatten(find_protocol(recipe.protocol).settings)
    title = f"Recipe {recipe.name}" + (f", over protocol {recipe.protocol}" if recipe.protocol else "")
    grid = Grid(title, ["setting", "value", "in place of"], text=("value", "in place of"))
    for key, value in flatten(recipe.settings).items():
        changed = key in below and below[key] != value
        old = toml_text(below[key]) if changed else ""
        grid.rows.append(Row([key, toml_text(value), old], "strong" if changed else "plain"))
    return grid
