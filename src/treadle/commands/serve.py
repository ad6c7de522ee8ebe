"""What `treadle serve` does."""

import ipaddress
from typing import Annotated

import typer
from rich.console import Console

from treadle.commands.completion import complete_settings
from treadle.commands.options import CheckpointOrRun, Device
from treadle.commands.record import find_policy_folder
from treadle.config.loading import read_config
from treadle.config.serving import ServeConfig


def serve(
    checkpoint: CheckpointOrRun,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings of the sections policy (loading) and sampling.",
            autocompletion=complete_settings(ServeConfig),
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; by default this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    camera: Annotated[
        list[str] | None,
        typer.Option("--camera", help="A camera's name in messages; give all, in the order in which the policy sees."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the noise of policies that have some.")] = 0,
    message_mb: Annotated[float, typer.Option(min=0.001, max=1024, help="The largest message, in MB.")] = 64.0,
    connections: Annotated[int, typer.Option(min=1, max=1024, help="Clients at the same time.")] = 8,
    idle: Annotated[float, typer.Option(min=0.1, help="Seconds of silence after which a client is let go.")] = 600.0,
    device: Device = "auto",
) -> None:
    """Answer observations with actions over a websocket, as openpi's clients ask. Ctrl-C ends it."""
    config = read_config(ServeConfig, None, overrides or [])
    folder, _ = find_policy_folder(checkpoint)
    from treadle.serving.packing import import_extra

    for package in ("websockets", "msgpack"):
        import_extra(package)
    from treadle.devices import prepare_cpu
    from treadle.policies.embodiment import read_embodiment
    from treadle.policies.load import load_configured
    from treadle.policies.sampling import Sampling
    from treadle.serving import server

    prepare_cpu(0)
    policy = load_configured(folder, config.policy, device=device)
    sampling = Sampling(**config.sampling.model_dump())
    service = server.PolicyService(policy, sampling, tuple(camera or ()), read_embodiment(folder), seed)
    console = Console()

    def listening(actual: int) -> None:
        console.print(f"serving {folder} on ws://{host}:{actual}", markup=False, highlight=False, soft_wrap=True)
        if not is_loopback(host):
            console.print(
                "everybody who reaches this address can use the policy; there are no passwords", style="yellow"
            )

    limits = server.Limits(message_mb=message_mb, connections=connections, idle_seconds=idle)
    server.serve(service, host, port, limits, listening)
    console.print("ended", highlight=False)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
