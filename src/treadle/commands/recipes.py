"""What `treadle recipes` does."""

from rich.console import Console
from rich.text import Text

from treadle.commands.evaluation import show
from treadle.config.checkpoints import checkpoints
from treadle.config.describe import toml_text
from treadle.config.loading import command_of
from treadle.config.protocols import find_protocol
from treadle.config.recipes import Recipe, read_recipe, read_recipes
from treadle.config.run_directory import flatten
from treadle.reporting.tables import Grid, Row


def recipe_groups() -> dict[str, list[tuple[str, str]]]:
    """The recipes that are installed, by the command that they are for and what it needs."""
    groups: dict[str, list[tuple[str, str]]] = {
        "treadle train: begin here": [],
        "treadle sft: policies from demonstrations": [],
        "treadle train: on graphics cards": [],
    }
    first, supervised, cards = groups.values()
    found = read_recipes()
    for recipe in found:
        group = supervised if command_of(recipe.settings) == "sft" else cards if recipe.about.devices else first
        group.append((recipe.name, recipe.summary))
    # What needs nothing else comes first.
    ready = {recipe.name for recipe in found if recipe.stated("policy", "checkpoint") in checkpoints()}
    first.sort(key=lambda row: row[0] not in ready)
    return groups


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
