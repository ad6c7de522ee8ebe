"""`python -m benchmarks`, or `treadle bench`: speed, signal and learning. Commands import what is heavy themselves."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from treadle.commands.application import Application
from treadle.commands.options import JsonFile, Overrides
from treadle.commands.results import check_destination

app = typer.Typer(
    cls=Application,
    help="Measure speed, signal and learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Kind = Literal["threads", "processes"]


@app.command("simulator")
def simulator(
    name: Annotated[str, typer.Argument(help="An installed simulator, or package.module:Class.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as simulator.options.task=...")
    ] = None,
    slots: Annotated[
        list[int] | None,
        typer.Option(
            "--slots",
            min=1,
            help="May be given again. Default: 1 to 256. With an environment of its own it counts processes, with "
            "slots_per_process=1 each; default: 1 and 2.",
        ),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option("--threads", min=1, help="May be given again. Default: 1 and 2.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Least time spent on each figure.")] = 1.0,
    starts: Annotated[int, typer.Option(min=1, help="Start everything so many times; figures are medians.")] = 1,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="The policy to measure beside it: a folder, or the name of a packaged one. Default: the one of the "
            "simulator's recipe, where it is packaged."
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Measure control steps per second beside the simulator's bare loop, and the cost of one policy forward."""
    check_destination(json)
    from benchmarks import simulator as benchmark

    benchmark.run(name, json, checkpoint, overrides or [], slots or [], threads or [], seconds, starts)


@app.command("curves")
def curves(
    overrides: Overrides = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            help="A name of benchmarks/curves.py, as ppo, grpo, openvla, flow; repeatable.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each.")] = 2,
    experiment: Annotated[
        str | None,
        typer.Option("--experiment", help="In place of variants and seeds, those of: four-way, ablations."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="Folder of the plots and their numbers.")] = Path("curves"),
    runs: Annotated[Path, typer.Option("--runs", help="Folder of the runs.")] = Path("runs/curves"),
) -> None:
    """Train algorithms on the tabletop, and plot success over samples and over wall time."""
    from benchmarks import curves as benchmark

    plan = benchmark.find_experiment(experiment) if experiment else dict.fromkeys(variant or ["ppo", "grpo"], seeds)
    benchmark.run(output, plan, runs, overrides or [])


@app.command("update")
def update(overrides: Overrides = None, json: JsonFile = None) -> None:
    """Measure the update time that skipping groups and masking chunks save."""
    check_destination(json)
    from benchmarks import update as benchmark

    benchmark.run(json, overrides or [])


@app.command("gradient")
def gradient(
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
    from benchmarks import gradient as benchmark

    benchmark.run(recipe, json, overrides or [], against or [], batches)


@app.command("prefix")
def prefix(
    cameras: Annotated[int, typer.Option(min=1, help="Images of each sample.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Samples.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each is measured; figures are medians.")] = 5,
    json: JsonFile = None,
) -> None:
    """Measure what it saves to read images and prompt once for several gradients, at SmolVLA's sizes."""
    check_destination(json)
    from benchmarks import prefix as benchmark
    from treadle.files import to_json

    typer.echo(to_json(benchmark.run(json, cameras, batch, repeats)))


@app.command("smolvla")
def smolvla(
    cameras: Annotated[int, typer.Option(min=1, help="Images of each observation.")] = 2,
    decisions: Annotated[int, typer.Option(min=1, help="Decisions that the update learns from.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps from noise to actions.")] = 4,
    lora: Annotated[int, typer.Option(min=0, help="Rank of adapters; 0 trains the expert itself.")] = 0,
    dtype: Annotated[
        Literal["auto", "float32"],
        typer.Option(help="Of the weights; `auto` keeps the published ones, most of them bfloat16."),
    ] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0 takes every core.")] = 0,
    json: JsonFile = None,
) -> None:
    """Measure what it takes to load a SmolVLA of published size, to act, and to make an update of PPO."""
    check_destination(json)
    from benchmarks import smolvla as benchmark
    from treadle.files import to_json

    typer.echo(to_json(benchmark.run(json, cameras, decisions, steps, lora, threads, dtype)))


@app.command("runtime")
def runtime(
    iterations: Annotated[int, typer.Option(min=4, help="Iterations of each placement.")] = 10,
    json: JsonFile = None,
) -> None:
    """Measure what a run costs beside its roles, in one process and over Ray, and how long publishing weights takes."""
    check_destination(json)
    from benchmarks import runtime as benchmark

    benchmark.run(json, iterations)


@app.command("collect")
def collect(
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
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Least time spent, by default 12 for the synthetic pair and 60 else; three alternations at least.",
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Measure rollouts in lanes against lockstep, and against the bound; simulator and policy on a core each."""
    check_destination(json)
    from benchmarks import collect as benchmark

    benchmark.run(pair, json, overrides or [], checkpoint=checkpoint, size=size, kind=kind, seconds=seconds)


@app.command("overlap")
def overlap(
    overrides: Overrides = None,
    pair: Annotated[
        Literal["synthetic", "tabletop"],
        typer.Option(help="Roles that do nothing but take their time, or those of GRPO on the tabletop."),
    ] = "synthetic",
    turns: Annotated[int, typer.Option(min=1, help="Times that each mode has its turn.")] = 3,
    iterations: Annotated[int, typer.Option(min=3, help="Of a turn; all but the first and the last count.")] = 6,
    json: JsonFile = None,
) -> None:
    """Measure iterations with overlap none, stream and async, and their bounds; the two roles have a core each."""
    check_destination(json)
    from benchmarks import overlap as benchmark

    benchmark.run(pair, json, overrides or [], turns=turns, iterations=iterations)


@app.command("plan")
def plan(
    overrides: Overrides = None,
    task: Annotated[Literal["tabletop", "libero"], typer.Option(help="What is run in several ways.")] = "tabletop",
    iterations: Annotated[int, typer.Option(min=4, help="Of each run; all but the first two count.")] = 8,
    json: JsonFile = None,
) -> None:
    """Measure a profile of a recipe, and how far its plans are off the runs that follow."""
    check_destination(json)
    from benchmarks import planning as benchmark

    benchmark.run(task, json, overrides or [], iterations=iterations)


@app.command("exchange")
def exchange(
    slots: Annotated[int, typer.Option(min=1, help="Environments of the figures at the top of the file.")] = 64,
    json: JsonFile = None,
) -> None:
    """Measure what an exchange costs between environments and a policy that cost nothing, and how that grows."""
    check_destination(json)
    from benchmarks import exchange as benchmark

    benchmark.run(json, slots)


@app.command("policy")
def policy(
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
    compiled: Annotated[bool, typer.Option("--compile", help="Act through compiled blocks.")] = False,
    json: JsonFile = None,
) -> None:
    """Measure decisions and training samples per second with random weights, beside the floor and a plain path."""
    check_destination(json)
    from benchmarks import policy as benchmark

    given: dict[str, Any] = {"policies": policy, "sizes": size, "batches": batch, "training_batches": train}
    benchmark.run(
        json,
        device=device,
        dtype=dtype,
        threads=threads,
        seconds=seconds,
        compiled=compiled,
        **{name: value for name, value in given.items() if value},
    )


@app.command("checkpoint")
def checkpoint(
    policy: Annotated[str, typer.Option(help="openvla or openvla_oft.")] = "openvla_oft",
    size: Annotated[str, typer.Option(help="tiny, 200m or 7b, with random weights.")] = "200m",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    scratch: Annotated[Path | None, typer.Option(help="Folder with room for it twice; it is left as it was.")] = None,
    json: JsonFile = None,
) -> None:
    """Measure time and peak memory of loading a checkpoint, acting once and saving it."""
    check_destination(json)
    from benchmarks import checkpoint as benchmark

    benchmark.run(json, size=size, kind=policy, dtype=dtype, scratch=scratch)


@app.command("memory")
def memory(
    policy: Annotated[str, typer.Option(help="openvla or openvla_oft.")] = "openvla_oft",
    size: Annotated[str, typer.Option(help="tiny, 200m or 7b, with random weights.")] = "200m",
    scratch: Annotated[Path | None, typer.Option(help="Folder with room for it twice; it is left as it was.")] = None,
    json: JsonFile = None,
) -> None:
    """Measure the memory of loading, acting and updates on the CPU, beside what `treadle plan` predicts."""
    check_destination(json)
    from benchmarks import memory as benchmark

    benchmark.run(json, size=size, kind=policy, scratch=scratch)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
