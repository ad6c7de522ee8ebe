"""The command line. Commands import what is heavy themselves, so that help and bad input answer at once."""

from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from treadle import __version__
from treadle.commands.application import Application, CommandWithKeys
from treadle.commands.bench import bench
from treadle.commands.completion import (
    complete_checkpoint,
    complete_command,
    complete_folder,
    complete_protocol,
    complete_recipe,
    complete_settings,
)
from treadle.commands.data import data_app
from treadle.commands.doctor import doctor
from treadle.commands.options import OVERRIDES_HELP, CheckpointOrRun, Device, JsonFile, Overrides, RecipeName, Suites
from treadle.commands.record import record
from treadle.commands.results import check_destination, write_result
from treadle.commands.serve import serve
from treadle.commands.simulators import simulators_app
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.loading import configure, load_recipe, read_config
from treadle.config.protocols import EvalConfig
from treadle.config.recipes import read_recipe
from treadle.config.schema import LoadingConfig
from treadle.config.section import Section
from treadle.config.supervised import SupervisedConfig
from treadle.errors import ConfigError

app = typer.Typer(
    cls=Application,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
policy_app = typer.Typer(help="Look at policies.", no_args_is_help=True)


class InspectConfig(Section):
    """What `treadle policy inspect` takes as key=value."""

    policy: LoadingConfig = LoadingConfig()


def show_version(asked: bool) -> None:
    """Show the version and exit, where asked."""
    if asked:
        typer.echo(f"treadle {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reinforcement learning of vision-language-action policies in simulators."""


@app.command(cls=CommandWithKeys)
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Show processes, memory and the arithmetic of an update; begin nothing.")
    ] = False,
) -> None:
    """Fine-tune a policy with reinforcement learning. The same command again resumes a run that was cut short."""
    written = read_recipe(recipe)
    config = configure(written, overrides or [])
    if dry:
        from treadle.commands.plan import dry_run

        dry_run(written, config, Console())
        return
    resolve_checkpoint(config.policy.checkpoint, written.about.checkpoint)
    from treadle.policies.load import policy_class
    from treadle.simulators.build import simulator_factory

    simulator_factory(config.simulator)
    if config.policy.kind is not None:
        policy_class(config.policy.kind)
    from treadle.runtime import loop

    loop.train(config)


@app.command(cls=CommandWithKeys)
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    memory: Annotated[bool, typer.Option("--memory", help="Also the memory of each process, as estimated.")] = False,
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, help="Graphics cards of a machine. Default: what is here.")
    ] = None,
    machines: Annotated[int, typer.Option("--machines", min=1, help="Machines with so many cards each.")] = 1,
    device_gb: Annotated[
        float | None,
        typer.Option("--device-gb", min=0.1, help="GB of a card. Default: what is here; 80 where --devices is given."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", help="Plan without the checkpoint, for a policy.kind of a size: 7b, 200m."),
    ] = None,
    timed: Annotated[
        bool,
        typer.Option("--time", help="Also the time of an iteration, after a minute of measuring."),
    ] = False,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="Take what roles cost from this file, in place of measuring.")
    ] = None,
    save_profile: Annotated[
        Path | None, typer.Option("--save-profile", help="Keep what was measured in this file.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Show a run's processes, memory and time before it starts: here, or on devices that are not here."""
    written = read_recipe(recipe)
    config, about = configure(written, overrides or []), written.about
    for file in (json, save_profile):
        check_destination(file)
    from treadle.commands.plan import plan_run, show_plan

    planned = plan_run(
        config,
        memory=memory or size is not None,
        devices=devices,
        machines=machines,
        device_gb=device_gb,
        size=size,
        about=about,
    )
    if timed and profile is None and planned.elsewhere:
        raise ConfigError("--time: nothing can be measured on graphics cards that are not here; give a --profile")
    show_plan(Console(), planned)
    report = planned.report()
    if timed or profile is not None:
        from treadle.commands.timing import plan_time, show_time_plan

        found = plan_time(config, planned.placement.machines, profile, save_profile, Console())
        show_time_plan(Console(), found)
        report["time"] = found.report()
    write_result(json, report)


@app.command(cls=CommandWithKeys)
def sft(
    recipe: RecipeName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help=OVERRIDES_HELP, autocompletion=complete_settings(SupervisedConfig)
        ),
    ] = None,
) -> None:
    """Train a policy on demonstrations; from nothing, its perception first."""
    config = load_recipe(recipe, overrides or [], SupervisedConfig)
    from treadle.supervised.train import train_supervised

    typer.echo(train_supervised(config))


@app.command("eval", cls=CommandWithKeys)
def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT... [KEY=VALUE]...",
            help="Checkpoint folders, or names of those that ship with Treadle; settings of the sections simulator, "
            "collection, evaluation, and of policy how it is loaded.",
            autocompletion=complete_settings(EvalConfig, complete_checkpoint),
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Complete settings by name (`treadle protocols`), or a .toml file; KEY=VALUE changes them.",
            autocompletion=complete_protocol,
        ),
    ] = None,
    reproduce: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="Evaluate again what a manifest.json describes. Exits with 1 where success leaves its interval.",
        ),
    ] = None,
    suite: Suites = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes per suite, each another scenario.")] = None,
    output: Annotated[
        Path, typer.Option(help="Folder that keeps episodes, tables and films. The same command goes on there.")
    ] = Path("evaluations"),
    again: Annotated[bool, typer.Option("--again", help="Play again what was played, into another folder.")] = False,
    device: Device = "auto",
    shuffle_instructions: Annotated[
        bool, typer.Option("--shuffle-instructions", help="Give a random one of the instructions that fit the scene.")
    ] = False,
    blank_images: Annotated[bool, typer.Option("--blank-images", help="Give grey images.")] = False,
    json: JsonFile = None,
) -> None:
    """Measure the success of checkpoints on enumerated scenarios that training never saw."""
    given = [*(words or [])]
    if episodes is not None:
        given.append(f"evaluation.episodes={episodes}")
    if suite:
        given.append(f"evaluation.suites={dumps(suite)}")
    from treadle.commands import evaluation

    asked = evaluation.Request(given, protocol, output, again, device, shuffle_instructions, blank_images, json)
    if reproduce is None:
        evaluation.evaluate(asked, Console())
    elif not evaluation.reproduce(reproduce, asked, Console()):
        raise typer.Exit(1)


@app.command("compare")
def compare_results(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_EVALUATION...",
            help="Folders that `treadle train` or `treadle eval` made, or files of --json; each is compared with the "
            "first. A run alone is compared with its base.",
            autocompletion=complete_folder,
        ),
    ],
    page: Annotated[Path, typer.Option(help="The page to write: .html, or .md.")] = Path("comparison.html"),
    json: JsonFile = None,
) -> None:
    """Compare runs and evaluations on the same scenarios: tables, curves, and what differs in their settings."""
    from treadle.commands.evaluation import compare

    compare(paths, page, json, Console())


@app.command("protocols")
def list_protocols(
    name: Annotated[
        str | None,
        typer.Argument(help="Show the settings and published figures of this one.", autocompletion=complete_protocol),
    ] = None,
) -> None:
    """List the protocols of evaluations: published ones, and those of packages that are installed beside Treadle."""
    from treadle.commands.evaluation import protocol_groups, show_protocol
    from treadle.commands.listing import show_listing

    if name is not None:
        show_protocol(name, Console())
        return
    show_listing(Console(), protocol_groups())


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run, runs/NAME.", autocompletion=complete_folder)],
) -> None:
    """Write the report of a run again, finished or not."""
    from treadle.reporting.report import write_report

    typer.echo(write_report(run_dir))


@app.command("recipes")
def list_recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show the settings of this one, and what it does otherwise than published.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            "--keys",
            metavar="COMMAND",
            help="Write the settings of train, sft or eval instead, as Markdown.",
            autocompletion=complete_command,
        ),
    ] = None,
) -> None:
    """List the recipes of Treadle, and of packages that are installed beside it."""
    if keys is not None:
        from treadle.commands.keys import REFERENCES, key_page

        if keys not in REFERENCES:
            raise ConfigError(f"--keys: found {keys!r}; allowed: {', '.join(REFERENCES)}")
        typer.echo(key_page(keys), nl=False)
        return
    from treadle.commands.listing import show_listing
    from treadle.commands.recipes import recipe_groups, show_recipe

    if name is not None:
        show_recipe(name, Console())
        return
    show_listing(Console(), recipe_groups())


@policy_app.command("inspect")
def inspect_policy(
    checkpoint: CheckpointOrRun,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="How it is read: settings of the section policy.",
            autocompletion=complete_settings(InspectConfig),
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Check a checkpoint before it is used: what it holds, whether all numbers are finite, the memory it needs, and the
    commands that come next. Exits with 2 where it would not load or act.
    """
    config = read_config(InspectConfig, None, overrides or [])
    folder = resolve_checkpoint(checkpoint)
    check_destination(json)
    from treadle.commands.policy import check_finite, contents_report, show_contents
    from treadle.policies.load import examine_policy

    contents = examine_policy(folder, config.policy if overrides else None)
    show_contents(Console(), contents, overrides or [])
    write_result(json, contents_report(contents, overrides or []))
    check_finite(contents)


# Help lists commands in this order, after those above.
app.command()(record)
app.command()(serve)
app.command()(doctor)
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)(bench)
app.add_typer(simulators_app, name="simulators")
app.add_typer(policy_app, name="policy")
app.add_typer(data_app, name="data")


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
