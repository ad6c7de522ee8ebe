# websockets types what it hands to callbacks, but is imported where it is used.
"""A policy behind a websocket, as clients of openpi ask it.

A client that connects is sent what the policy is. It then sends observations, and is answered by actions; a message
that cannot be answered gets a text in return, which openpi's client raises as an error, and the connection goes on.
"""

import asyncio
import http
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.noise import noise_key
from treadle.errors import ConfigError, TreadleError
from treadle.policies.embodiment import Embodiment
from treadle.policies.protocol import Policy
from treadle.policies.sampling import Sampling
from treadle.serving.observations import Shown, read_observation
from treadle.serving.packing import import_extra, pack, unpack

_log = logging.getLogger(__name__)

HEALTH = "/healthz"
"""Answers plain HTTP, for those who wait for the server."""
_NOISE = 0x7365727665
"""Keeps the noise of served decisions apart from that of training and evaluation."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may do."""

    message_mb: float = 64.0
    """Of a message, in MB; a larger one ends its connection."""
    connections: int = 8
    """At the same time; further ones are refused."""
    open_seconds: float = 10.0
    """To connect."""
    idle_seconds: float = 600.0
    """Between two messages; a connection that is silent for longer is closed."""
    ping_seconds: float = 20.0
    """A client that does not answer a ping for so long is gone."""
    close_seconds: float = 5.0
    """To say goodbye."""


class PolicyService:
    """Decisions for single observations.

    Args:
        policy: it decides; one observation at a time.
        sampling: how actions are drawn.
        cameras: names of cameras, in the policy's order; none for a policy that sees one, whatever its name.
        embodiment: of a policy that was trained for a robot of your own.
        seed: of noise, where the policy starts from noise or draws actions. Decision n of a connection has the noise
            of (seed, n).

    Raises ConfigError where the policy sees another number of cameras than there are names.
    """

    def __init__(
        self,
        policy: Policy,
        sampling: Sampling,
        cameras: tuple[str, ...] = (),
        embodiment: Embodiment | None = None,
        seed: int = 0,
    ) -> None:
        self.policy, self._sampling, self._seed = policy.eval(), sampling, seed
        self._embodiment = embodiment
        self.cameras = cameras or (tuple(embodiment.cameras) if embodiment else ())
        _check_cameras(self.cameras, policy.cameras)

    @property
    def metadata(self) -> dict[str, Any]:
        """What a client is told when it connects."""
        robot = {} if self._embodiment is None else {"robot": self._embodiment.model_dump()}
        facts = {"cameras": list(self.cameras), "chunk": self.policy.chunk, "action_dim": self.policy.action_dim}
        return {"policy": self.policy.describe(), **facts, **robot}

    @torch.no_grad()
    def decide(self, shown: Shown, number: int) -> NDArray[np.float32]:
        """Actions [C, A] for decision `number` of a connection, as the robot takes them. Raises ConfigError for an
        observation that the policy cannot take.
        """
        inputs = self.policy.prepare(shown.frames, [shown.prompt], shown.state)
        decision = self.policy.act(inputs, self._sampling, noise_key(_NOISE, self._seed, number))
        actions = decision.actions.float().cpu().numpy()
        if self._embodiment is not None and shown.state is not None:
            actions = self._embodiment.restore(actions, shown.state)
        return actions[0]

    def answer(self, content: bytes | str, number: int) -> bytes | str:
        """The answer to a message: packed actions, or a text that says what is wrong with it."""
        try:
            if isinstance(content, str):
                return "RequestError: found a text message; allowed: a packed observation, in bytes"
            began = time.perf_counter()
            actions = self.decide(read_observation(unpack(content), self.cameras), number)
            timing = {"infer_ms": (time.perf_counter() - began) * 1000}
            return pack({"actions": actions, "server_timing": timing})
        except TreadleError as error:
            return f"{type(error).__name__}: {error}"


def _check_cameras(names: tuple[str, ...], seen: int) -> None:
    """Raises ConfigError for names that are not one for each of the `seen` cameras of a policy, 0 for any number."""
    if doubled := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"--camera: found {doubled[0]!r} twice; give each camera once")
    # A policy of one camera takes the picture of a message, whatever its name.
    if seen and len(names) != seen and (names or seen > 1):
        raise ConfigError(
            f"--camera: found {', '.join(names) or 'none'}, but the policy sees {seen} camera{'s' * (seen > 1)}; give "
            "--camera NAME for each, in the order in which the policy sees them"
        )


def serve(
    service: PolicyService, host: str, port: int, limits: Limits, listening: Callable[[int], None] = lambda _: None
) -> None:
    """Answer clients until Ctrl-C or SIGTERM. `listening` is called with the port, once there is somebody to ask.

    Raises ConfigError where the address cannot be listened on, or the extra `serve` is not installed.
    """
    for package in ("websockets", "msgpack"):
        import_extra(package)
    asyncio.run(_serve(service, host, port, limits, listening))


async def _serve(
    service: PolicyService, host: str, port: int, limits: Limits, listening: Callable[[int], None]
) -> None:
    server_module = import_extra("websockets.asyncio.server")
    closed: Any = import_extra("websockets.exceptions").ConnectionClosed
    # The policy decides one after another, in a thread, so that pings are answered meanwhile.
    turn, metadata = asyncio.Lock(), pack(service.metadata)
    connected = 0

    async def converse(connection: Any) -> None:
        nonlocal connected
        connected += 1
        number = 0
        try:
            async with asyncio.timeout(limits.idle_seconds):
                await connection.send(metadata)
            while True:
                async with asyncio.timeout(limits.idle_seconds):
                    content = await connection.recv()
                async with turn:
                    reply = await asyncio.to_thread(service.answer, content, number)
                # Only what was decided moves the noise on.
                number += isinstance(reply, bytes)
                async with asyncio.timeout(limits.idle_seconds):
                    await connection.send(reply)
        except TimeoutError:
            await connection.close(1001, f"nothing was sent or taken for {limits.idle_seconds:g} s")
        except closed as end:
            _log.info("%s: connection ended: %s", connection.remote_address, end)
        finally:
            connected -= 1

    def screen(connection: Any, request: Any) -> Any:
        """Answers before a connection becomes a websocket."""
        if request.path == HEALTH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if connected >= limits.connections:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{connected} clients are connected\n")
        return None

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        async with server_module.serve(
            converse,
            host,
            port,
            # A browser says where its page is from. No page has business here.
            origins=[None],
            compression=None,
            max_size=round(limits.message_mb * 2**20),
            process_request=screen,
            open_timeout=limits.open_seconds,
            ping_interval=limits.ping_seconds,
            ping_timeout=limits.ping_seconds,
            close_timeout=limits.close_seconds,
        ) as server:
            listening(server.sockets[0].getsockname()[1])
            await stop.wait()
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from error
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
