"""A served policy, asked over a websocket from outside."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from miniature import IMAGE, INSTRUCTIONS
from treadle.cli import app
from treadle.commands.serve import is_loopback
from treadle.data.noise import noise_key
from treadle.errors import ConfigError
from treadle.policies import load_policy
from treadle.policies.embodiment import Dimension, Embodiment
from treadle.policies.sampling import Sampling
from treadle.serving import packing
from treadle.serving.observations import Shown
from treadle.serving.packing import pack, unpack
from treadle.serving.server import _NOISE, PolicyService

SMOLVLA = Path(__file__).parents[1] / "fixtures" / "smolvla_tiny"


def start(checkpoint: Path, *options: str) -> tuple["subprocess.Popen[str]", int]:
    """A server in a process of its own, and its port."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "treadle.cli", "serve", str(checkpoint), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"ws://127\.0\.0\.1:(\d+)", line)
    if found is None:
        raise AssertionError(line + process.communicate()[0])
    return process, int(found[1])


@pytest.fixture(scope="module")
def port(checkpoint: Path) -> Iterator[int]:
    process, port = start(checkpoint, "--message-mb", "1", "--connections", "2")
    yield port
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "ended\n")


def reach(port: int) -> ClientConnection:
    """As openpi's client connects."""
    return connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None)


def observation(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "observation/image": rng.integers(0, 256, (IMAGE, IMAGE, 3), dtype=np.uint8),
        "observation/state": rng.uniform(-1, 1, 7).astype(np.float32),
        "prompt": INSTRUCTIONS[seed % 2],
    }


@pytest.mark.integration
def test_actions_are_those_of_act_bit_for_bit(port: int, checkpoint: Path):
    policy = load_policy(checkpoint, device="cpu").eval()
    with reach(port) as client:
        metadata = unpack(client.recv())
        assert (metadata["chunk"], metadata["action_dim"]) == (policy.chunk, policy.action_dim)
        assert metadata["policy"]["kind"] == "openvla_oft"
        for seed in range(3):
            asked = observation(seed)
            client.send(pack(asked))
            answer = unpack(client.recv())
            inputs = policy.prepare(
                [asked["observation/image"][None]], [asked["prompt"]], asked["observation/state"][None]
            )
            wanted = policy.act(inputs, Sampling(temperature=0)).actions[0].numpy()
            assert answer["actions"].dtype == np.float32
            assert np.array_equal(answer["actions"], wanted)
            assert answer["server_timing"]["infer_ms"] > 0


@pytest.mark.integration
def test_a_wrong_message_is_answered_and_the_server_goes_on(port: int):
    with reach(port) as client:
        client.recv()
        good = observation(0)
        wrong = {
            "RequestError: message: not msgpack": b"nonsense",
            "RequestError: found a text message": "text",
            "RequestError: the message lacks 'prompt'": pack({k: v for k, v in good.items() if k != "prompt"}),
            "RequestError: observation/image: found": pack(good | {"observation/image": np.zeros((3, 3))})
            and pack({"observation/image": np.zeros((2, 2, 3), np.int64), "prompt": "go"}),
            "ConfigError: the policy takes proprioception": pack({k: v for k, v in good.items() if "state" not in k}),
            "ConfigError: proprioception [1, 3] of 1 samples": pack(good | {"observation/state": np.zeros(3)}),
            "ConfigError: proprioception: number 0 of sample 0 is nan": pack(
                good | {"observation/state": np.full(7, np.nan)}
            ),
        }
        for said, content in wrong.items():
            client.send(content)
            answer = client.recv()
            assert isinstance(answer, str)
            assert answer.startswith(said), answer
            assert "Traceback" not in answer
        client.send(pack(good))
        assert unpack(client.recv())["actions"].shape == (4, 7)


@pytest.mark.integration
def test_a_message_that_is_too_large_ends_its_connection_alone(port: int):
    with reach(port) as client:
        client.recv()
        client.send(pack({"x": np.zeros(2**20, np.uint8), "prompt": "go"}))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
    with reach(port) as client:
        assert unpack(client.recv())["chunk"] == 4


@pytest.mark.integration
def test_further_clients_and_pages_of_browsers_are_refused_and_health_is_told(port: int):
    with reach(port) as one, reach(port) as other:
        one.recv(), other.recv()
        with pytest.raises(InvalidStatus, match="503"):
            reach(port)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            assert answer.read() == b"OK\n"
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{port}", origin="http://example.com")  # type: ignore[arg-type]


@pytest.mark.integration
def test_a_silent_client_is_let_go_and_the_end_closes_the_others(checkpoint: Path):
    process, port = start(checkpoint, "--idle", "0.5")
    with reach(port) as client:
        client.recv()
        with pytest.raises(ConnectionClosed, match=r"nothing was sent or taken for 0\.5 s"):
            client.recv()
    with reach(port) as client:
        client.recv()
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            client.recv()
    assert process.wait(timeout=60) == 0


def test_a_port_that_is_taken_is_said(checkpoint: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(app, ["serve", str(checkpoint), "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 2
    assert "cannot listen there" in result.stderr


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, checkpoint: Path):
    monkeypatch.setitem(sys.modules, "websockets", None)
    with pytest.raises(ConfigError, match=r"needs the package 'websockets'.*pip install 'treadle\[serve\]'"):
        packing.import_extra("websockets")
    result = CliRunner().invoke(app, ["serve", str(checkpoint)])
    assert result.exit_code == 2
    assert "treadle[serve]" in result.stderr


def test_noise_belongs_to_the_decision_of_a_connection():
    """A flow policy starts from noise at temperature 0 too."""
    policy = load_policy(SMOLVLA, device="cpu", head=8, vision_head=8)
    rng = np.random.default_rng(0)
    cameras = tuple(policy.found.published.cameras())
    frames = [rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8) for _ in cameras]
    state = rng.uniform(-1, 1, (1, policy.found.published.size("observation.state"))).astype(np.float32)
    shown = Shown(frames, state, "lift the cube")
    service = PolicyService(policy, Sampling(temperature=0), cameras, seed=3)
    first, again, second = (service.decide(shown, number) for number in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    inputs = policy.prepare(frames, ["lift the cube"], state)
    wanted = policy.act(inputs, Sampling(temperature=0), noise_key(_NOISE, 3, 1)).actions[0]
    assert torch.equal(torch.from_numpy(second), wanted)


@pytest.mark.parametrize(
    ("cameras", "said"),
    [
        (["a", "b", "c"], "found a, b, c, but the policy sees 2 cameras; give --camera NAME for each, in the order"),
        (["a"], "found a, but the policy sees 2 cameras"),
        ([], "found none, but the policy sees 2 cameras"),
        (["a", "a"], "found 'a' twice; give each camera once"),
    ],
)
def test_names_of_cameras_are_one_for_each_that_the_policy_sees(cameras: list[str], said: str):
    policy = load_policy(SMOLVLA, device="cpu", head=8, vision_head=8)
    with pytest.raises(ConfigError, match=f"^--camera: {said}"):
        PolicyService(policy, Sampling(temperature=0), tuple(cameras))


def test_differences_become_targets(checkpoint: Path):
    policy = load_policy(checkpoint, device="cpu")
    kinds = ["absolute"] * 6 + ["gripper"]
    robot = Embodiment(
        name="arm",
        cameras=["front"],
        sizes=[[IMAGE, IMAGE]],
        proprioception=7,
        actions=[Dimension(name=f"a{i}", kind=kind) for i, kind in enumerate(kinds)],  # type: ignore[arg-type]
        deltas=True,
        fps=10,
    )
    asked = observation(0)
    shown = Shown([asked["observation/image"][None]], asked["observation/state"][None], asked["prompt"])
    plain = PolicyService(policy, Sampling(temperature=0)).decide(shown, 0)
    served = PolicyService(policy, Sampling(temperature=0), embodiment=robot)
    assert served.cameras == ("front",)
    added = np.append(asked["observation/state"][:6], 0).astype(np.float32)
    assert np.array_equal(served.decide(shown, 0), plain + added)
    assert served.metadata["robot"]["deltas"] is True


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("robot", False)]
)
def test_addresses_of_this_machine_alone_are_known(host: str, alone: bool):
    assert is_loopback(host) is alone
