"""The command line. Commands import what is heavy themselves, so that help and bad input answer at once."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from treadle import __version__
from treadle.commands.application import Application, CommandWithKeys
from treadle.commands.results import check_destination, success_table, write_result
from treadle.config.loading import load_recipe, read_config, recipes, resolve_checkpoint
from treadle.config.schema import (
    EvaluationConfig,
    LoadingConfig,
    PolicyConfig,
    Section,
    SimulatorConfig,
    SupervisedConfig,
)

app = typer.Typer(
    cls=Application,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
simulators_app = typer.Typer(help="Install simulators and look at them.", no_args_is_help=True)
policy_app = typer.Typer(help="Look at policies.", no_args_is_help=True)
bench_app = typer.Typer(help="Measure speed.", no_args_is_help=True)
app.add_typer(simulators_app, name="simulators")
app.add_typer(policy_app, name="policy")
app.add_typer(bench_app, name="bench")


Kind = Literal["threads", "processes"]


class EvalConfig(Section):
    """What `treadle eval` takes as key=value."""

    policy: LoadingConfig = LoadingConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Names of recipes, with their descriptions, for shell completion."""
    return [(name, doc) for name, doc in recipes().items() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[tuple[str, str]]:
    """Keys of a run, with their documentation, for shell completion."""
    from treadle.config.describe import describe
    from treadle.config.schema import TrainConfig

    return [(f"{key.name}=", key.doc) for key in describe(TrainConfig) if key.name.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings that differ from the recipe's.", autocompletion=complete_key
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to this file.")]


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
    recipe: Annotated[
        str,
        typer.Argument(help="A name that `treadle recipes` lists, or a .toml file.", autocompletion=complete_recipe),
    ],
    overrides: Overrides = None,
) -> None:
    """Fine-tune a policy with reinforcement learning. The same command again resumes a run that was cut short."""
    config = load_recipe(recipe, overrides or [])
    resolve_checkpoint(config.policy.checkpoint)
    from treadle.simulators.build import simulator_factory

    simulator_factory(config.simulator)
    from treadle.training import loop

    loop.train(config)


@app.command()
def sft(
    recipe: Annotated[str, typer.Argument(help="A name that `treadle recipes` lists, or a .toml file.")],
    overrides: Overrides = None,
) -> None:
    """Train a policy on demonstrations; from nothing, its perception first."""
    config = load_recipe(recipe, overrides or [], SupervisedConfig)
    from treadle.training import supervised

    typer.echo(supervised.train_supervised(config))


@app.command("eval")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, or the name of one that ships with Treadle.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings of the sections `simulator` and `evaluation`, and of `policy` how it is loaded.",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="A suite to evaluate; may be given again. Default: all four.")
    ] = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes per suite, each another scenario.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    shuffle_instructions: Annotated[
        bool, typer.Option("--shuffle-instructions", help="Give a random one of the instructions that fit the scene.")
    ] = False,
    blank_images: Annotated[bool, typer.Option("--blank-images", help="Give grey images.")] = False,
    json: JsonFile = None,
) -> None:
    """Measure the success of a checkpoint on enumerated scenarios that training never saw."""
    given = [*(overrides or [])]
    if episodes is not None:
        given.append(f"evaluation.episodes={episodes}")
    config = read_config(EvalConfig, None, given)
    evaluation = config.evaluation if not suite else config.evaluation.model_copy(update={"suites": tuple(suite)})
    folder = resolve_checkpoint(checkpoint)
    check_destination(json)
    from treadle.evaluation.evaluate import evaluate_checkpoint

    report = evaluate_checkpoint(
        folder,
        config.policy,
        config.simulator,
        evaluation,
        device,
        instructions="shuffled" if shuffle_instructions else "own",
        frames="blank" if blank_images else "own",
    )
    Console().print(success_table(report))
    write_result(json, report)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="The folder of a run, runs/NAME.")]) -> None:
    """Write the report of a run again, finished or not."""
    from treadle.reporting.report import write_report

    typer.echo(write_report(run_dir))


@app.command("recipes")
def list_recipes(
    keys: Annotated[bool, typer.Option("--keys", help="Write the page of all settings instead, as Markdown.")] = False,
) -> None:
    """List the recipes that ship with Treadle."""
    if keys:
        from treadle.commands.keys import key_page

        typer.echo(key_page(), nl=False)
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("recipe", style="bold")
    table.add_column("what")
    for name, doc in recipes().items():
        table.add_row(name, escape(doc))
    Console().print(table)


@app.command()
def doctor(json: JsonFile = None) -> None:
    """Check this machine: what works, what is missing, and how to mend it. Exits with 1 where the core cannot work."""
    check_destination(json)
    from treadle.doctor import check_table, core_works, examine

    checks = examine()
    Console().print(check_table(checks))
    write_result(json, {"works": core_works(checks), "checks": [check.to_json() for check in checks]})
    if not core_works(checks):
        raise typer.Exit(1)


@simulators_app.command("list")
def list_simulators() -> None:
    """List the simulators, and whether the environments that some of them need are installed."""
    from treadle.commands.simulators import simulators_table

    Console().print(simulators_table())


@simulators_app.command("install")
def install_simulators(
    names: Annotated[list[str] | None, typer.Argument(help="Simulators that `treadle simulators list` names.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Install every simulator.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make environments again, whatever is there.")] = False,
    system: Annotated[bool, typer.Option("--system", help="As root, also apt-get system packages they lack.")] = False,
) -> None:
    """Make the environments that simulators run in. One that is there with its pins is kept as it is."""
    from treadle.commands.simulators import install_environments

    install_environments(names or [], all_, force=force, system=system)


@simulators_app.command("doctor")
def simulators_doctor(
    names: Annotated[list[str] | None, typer.Argument(help="Simulators to look at. Default: all.")] = None,
    json: JsonFile = None,
) -> None:
    """Check simulators: each renders a frame where it lives. Exits with 1 where one does not work."""
    check_destination(json)
    from treadle.doctor import check_table, examine_simulators

    checks = examine_simulators(names or [])
    works = all(check.state == "works" for check in checks)
    Console().print(check_table(checks))
    write_result(json, {"works": works, "checks": [check.to_json() for check in checks]})
    if not works:
        raise typer.Exit(1)


@simulators_app.command()
def view(
    name: Annotated[str, typer.Argument(help="An installed simulator, or package.module:Class.")],
    suite: Annotated[str, typer.Option(help="The suite of the scenario.")] = "train",
    index: Annotated[int, typer.Option(min=0, help="Its place in the suite's evaluation split.")] = 0,
    video: Annotated[Path, typer.Option(help="The mp4 to write.")] = Path("expert.mp4"),
) -> None:
    """Film the simulator's scripted expert on one scenario."""
    check_destination(video)
    from treadle.commands.film import film_expert

    instruction, success, steps = film_expert(name, suite, index, video)
    typer.echo(f"{instruction}: {'success' if success else 'no success'} in {steps} control steps; {video}")


@policy_app.command("inspect")
def inspect_policy(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, or the name of one that ships with Treadle.")],
    json: JsonFile = None,
) -> None:
    """What a checkpoint holds, the memory it needs, and the recipes that fit; its weights are not loaded."""
    folder = resolve_checkpoint(checkpoint)
    check_destination(json)
    from treadle.commands.policy import holdings_report, holdings_table
    from treadle.policies.inspection import examine

    holdings = examine(folder)
    Console().print(holdings_table(holdings))
    write_result(json, holdings_report(holdings))


@bench_app.command("simulator")
def bench_simulator(
    name: Annotated[str, typer.Argument(help="An installed simulator, or package.module:Class.")],
    checkpoint: Annotated[
        str, typer.Option(help="The policy to measure beside it: a folder, or the name of a packaged one.")
    ] = PolicyConfig().checkpoint,
    json: JsonFile = None,
) -> None:
    """Measure control steps per second, with and without rendering, beside the cost of one policy forward."""
    check_destination(json)
    from treadle.benchmarks import simulator

    simulator.run(name, json, checkpoint)


@bench_app.command("curves")
def bench_curves(
    overrides: Overrides = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant", help="ppo, grpo, grpo-scores, grpo-20-percent, grpo-filter, grpo-refill; repeatable."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each.")] = 2,
    output: Annotated[Path, typer.Option("--output", help="Folder of the plots and their numbers.")] = Path("curves"),
    runs: Annotated[Path, typer.Option("--runs", help="Folder of the runs.")] = Path("runs/curves"),
) -> None:
    """Train algorithms on the tabletop, and plot success over samples and over wall time."""
    from treadle.benchmarks import curves

    curves.run(output, variant or ["ppo", "grpo"], range(seeds), runs, overrides or [])


@bench_app.command("update")
def bench_update(overrides: Overrides = None, json: JsonFile = None) -> None:
    """Measure the update time that skipping groups and masking chunks save."""
    check_destination(json)
    from treadle.benchmarks import update

    update.run(json, overrides or [])


@bench_app.command("gradient")
def bench_gradient(
    recipe: Annotated[str, typer.Argument(help="A recipe, by name or file.")],
    overrides: Overrides = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="A variant on the same rollouts, as 'algorithm.estimator=rloo algorithm.gamma=1'; may be given again.",
        ),
    ] = None,
    batches: Annotated[int, typer.Option("--batches", min=3, help="Independent batches of an update's size.")] = 8,
    json: JsonFile = None,
) -> None:
    """Measure how much of the policy gradient is signal: what gradients of independent rollouts have in common."""
    check_destination(json)
    from treadle.benchmarks import gradient

    gradient.run(recipe, json, overrides or [], against or [], batches)


@bench_app.command("collect")
def bench_collect(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="`decisions` and settings of `simulator` and `collection` that differ from the simulator's recipe.",
        ),
    ] = None,
    pair: Annotated[
        str, typer.Option(help="`synthetic`, or an installed simulator or package.module:Class, and what fits it.")
    ] = "synthetic",
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="The policy of a simulator: a folder, or the name of a packaged one. Default: the recipe's where that "
            "is packaged, else random weights."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxLAYERS",
            help="Random weights, with a decoder of this size. Default: one that takes as long as simulating.",
        ),
    ] = None,
    kind: Annotated[Kind, typer.Option(help="What plays the simulator.")] = "processes",
    seconds: Annotated[float, typer.Option(min=0, help="Least time spent; three alternations at least.")] = 60.0,
    json: JsonFile = None,
) -> None:
    """Measure rollouts in lanes against lockstep, and against the bound; simulator and policy on a core each."""
    check_destination(json)
    from treadle.benchmarks import collect

    collect.run(pair, json, overrides or [], checkpoint=checkpoint, size=size, kind=kind, seconds=seconds)


@bench_app.command("exchange")
def bench_exchange(
    slots: Annotated[int, typer.Option(min=1, help="Environments of the figures at the top of the file.")] = 64,
    json: JsonFile = None,
) -> None:
    """Measure what an exchange costs between environments and a policy that cost nothing, and how that grows."""
    check_destination(json)
    from treadle.benchmarks import exchange

    exchange.run(json, slots)


@bench_app.command("policy")
def bench_policy(
    policy: Annotated[
        list[str] | None, typer.Option("--policy", help="openvla or openvla_oft; may be given again. Default: both.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="tiny, 200m or 7b; may be given again. Default: the first two."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Decisions at once; may be given again. Default: 1, 16.")
    ] = None,
    train: Annotated[
        list[int] | None,
        typer.Option("--train", min=1, help="Batches that are trained on too; may be given again. Default: 1."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (bfloat16 on a GPU, else float32), float32, bfloat16.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch on a CPU; 0 takes every core.")] = 0,
    seconds: Annotated[float, typer.Option(min=0, help="Least time spent on each figure.")] = 1.0,
    json: JsonFile = None,
) -> None:
    """Measure decisions and training samples per second with random weights, beside the floor and a plain path."""
    check_destination(json)
    from treadle.benchmarks import policy as benchmark

    given: dict[str, Any] = {"policies": policy, "sizes": size, "batches": batch, "training_batches": train}
    benchmark.run(
        json,
        device=device,
        dtype=dtype,
        threads=threads,
        seconds=seconds,
        **{name: value for name, value in given.items() if value},
    )


@bench_app.command("checkpoint")
def bench_checkpoint(
    policy: Annotated[str, typer.Option(help="openvla or openvla_oft.")] = "openvla_oft",
    size: Annotated[str, typer.Option(help="tiny, 200m or 7b, with random weights.")] = "200m",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    scratch: Annotated[Path | None, typer.Option(help="Folder with room for it twice; it is left as it was.")] = None,
    json: JsonFile = None,
) -> None:
    """Measure time and peak memory of loading a checkpoint, acting once and saving it."""
    check_destination(json)
    from treadle.benchmarks import checkpoint

    checkpoint.run(json, size=size, kind=policy, dtype=dtype, scratch=scratch)


def main() -> None:
    """The console script."""
    app()
