"""`treadle simulators`: install simulators and look at them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from treadle.commands.completion import complete_simulator, complete_suite
from treadle.commands.doctor import show_checks
from treadle.commands.options import JsonFile, Suites
from treadle.commands.results import check_destination, write_result

simulators_app = typer.Typer(help="Install simulators and look at them.", no_args_is_help=True)


@simulators_app.command("list")
def list_simulators() -> None:
    """List the simulators, and whether the environments that some of them need are installed."""
    from treadle.commands.installing import simulator_list
    from treadle.commands.listing import show_listing

    show_listing(Console(), {"": simulator_list()})


@simulators_app.command("install")
def install_simulators(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Simulators that `treadle simulators list` names.", autocompletion=complete_simulator),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Install every simulator.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make environments again, whatever is there.")] = False,
    system: Annotated[bool, typer.Option("--system", help="As root, also apt-get system packages they lack.")] = False,
) -> None:
    """Make the environments that simulators run in. One that is there with its pins is kept as it is."""
    from treadle.commands.installing import install_environments

    install_environments(names or [], all_, force=force, system=system)


@simulators_app.command("doctor")
def simulators_doctor(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Simulators to look at. Default: all.", autocompletion=complete_simulator),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Check simulators: each renders a frame where it lives. Exits with 1 where one does not work."""
    check_destination(json)
    from treadle.doctor import examine_simulators

    checks = examine_simulators(names or [])
    show_checks(checks, all(check.state == "works" for check in checks), json)


@simulators_app.command("settle")
def settle_states(
    name: Annotated[
        str,
        typer.Argument(
            help="An installed simulator whose episodes begin from stored states.", autocompletion=complete_simulator
        ),
    ],
    suite: Suites = None,
    states: Annotated[int, typer.Option(min=1, help="States of each task, at most.")] = 50,
    python: Annotated[str | None, typer.Option(help="Another Python with the simulator's packages.")] = None,
    json: JsonFile = None,
) -> None:
    """Let stored initial states come to rest, and say where things slide: other physics than those the states were
    recorded with. Exits with 1 where a task slides.
    """
    check_destination(json)
    from treadle.commands.settle import TaskSettling, probe_settling, settling_table

    def told(task: TaskSettling) -> None:
        typer.echo(f"{task.suite} {task.number}, {task.task}: {task.thing} {task.median * 100:.1f} cm", err=True)

    report = probe_settling(name, suite or ["train"], states, python, told)
    Console().print(settling_table(report))
    write_result(json, report)
    if any(task["slides"] for task in report["tasks"]):
        raise typer.Exit(1)


@simulators_app.command()
def view(
    name: Annotated[
        str,
        typer.Argument(help="An installed simulator, or package.module:Class.", autocompletion=complete_simulator),
    ],
    suite: Annotated[str, typer.Option(help="The suite of the scenario.", autocompletion=complete_suite)] = "train",
    index: Annotated[int, typer.Option(min=0, help="Its place in the suite's evaluation split.")] = 0,
    video: Annotated[Path, typer.Option(help="The mp4 to write.")] = Path("expert.mp4"),
) -> None:
    """Film the simulator's scripted expert on one scenario."""
    check_destination(video)
    from treadle.commands.film import film_expert

    instruction, success, steps = film_expert(name, suite, index, video)
    typer.echo(f"{instruction}: {'success' if success else 'no success'} in {steps} control steps; {video}")
