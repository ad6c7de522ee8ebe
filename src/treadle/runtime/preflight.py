"""The pre-flight of a run: success without exploration and with it, before the first update.

A policy that fails as soon as it explores has nothing to learn from; one that explores little learns slowly. How much
it explores is its temperature of sampling, whatever that multiplies: logits, or the noise of a flow.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from treadle.config.schema import TrainConfig
from treadle.data.step import EpisodeResult
from treadle.devices import prepare_cpu
from treadle.errors import OutputError
from treadle.evaluation.evaluate import summarize_suite
from treadle.evaluation.manifest import checkpoint_label
from treadle.evaluation.play import play
from treadle.files import to_json, write_atomically
from treadle.policies.load import load_configured
from treadle.policies.protocol import Policy, Sampling
from treadle.reading import read_json
from treadle.reporting.folder import PREFLIGHT_FILE
from treadle.rollout.actor import Actor
from treadle.rollout.sources import ScenarioList
from treadle.runtime.exhaustion import naming_what_to_lower
from treadle.workers.crew import Crew, check_dimensions
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session
from treadle.workers.plan import plan_crew

Preflight = dict[str, Any]
"""What was tried, as plain data: `settings`, `policy_facts`, `still` without exploration, `trials` with it, the
`temperature` that the run trains at, and a `warning` or None."""


def fly(config: TrainConfig, base: Path, device: torch.device, say: Callable[[str], None]) -> Preflight:
    """Play training scenarios with the policy that a run begins with, on this machine, and decide on a temperature.

    Raises:
        TreadleError: A mistake that the user can mend.
    """
    began = time.perf_counter()
    prepare_cpu(config.torch_threads)
    facts, still, trials = _measure(config, base, device, say)
    if device.type == "cuda":
        # The run loads its own policy.
        torch.cuda.empty_cache()
    chosen, warning = decide(config, still["success"], {x["temperature"]: x["success"] for x in trials})
    if config.preflight.choose:
        say(f"pre-flight: training at temperature {chosen:g}")
    return {
        "checkpoint": checkpoint_label(base),
        "policy_facts": facts,
        "settings": identity(config),
        "still": still,
        "trials": trials,
        "temperature": chosen,
        "warning": warning,
        "seconds": time.perf_counter() - began,
    }


def candidates(config: TrainConfig, policy: Policy) -> tuple[float, ...]:
    """The temperatures to try, ascending."""
    if not config.preflight.choose:
        return (config.policy.sampling.temperature,)
    return tuple(sorted(config.preflight.temperatures or policy.temperatures))


def decide(config: TrainConfig, still: float, successes: Mapping[float, float]) -> tuple[float, str | None]:
    """The temperature to train at, from success without exploration and by temperature, and what to warn of."""
    keep, own = config.preflight.keep, config.policy.sampling.temperature
    if not still:
        why = "the policy never succeeds without exploration either, so this says nothing of its temperature"
        return own, f"pre-flight: {why}; take a better base, easier scenarios, or more preflight.episodes"
    kept = [temperature for temperature, success in successes.items() if success >= keep * still]
    if kept:
        return max(kept), None
    lowest = min(successes)
    costs = f"{still:.1%} of {config.preflight.episodes} training scenarios succeed without exploration, and "
    costs += f"{successes[lowest]:.1%} at temperature {lowest:g}, less than {keep:.0%} of it (preflight.keep)"
    advice = "lower policy.sampling.temperature or the noise of policy.options"
    if config.preflight.choose:
        advice = "offer lower preflight.temperatures"
    return lowest, f"pre-flight: {costs}: exploration breaks what the policy can do; {advice}, or execute longer chunks"


def at_temperature(config: TrainConfig, temperature: float) -> TrainConfig:
    """The run with another temperature of rollouts, and of the log-probs of training."""
    sampling = config.policy.sampling.model_copy(update={"temperature": temperature})
    return config.model_copy(update={"policy": config.policy.model_copy(update={"sampling": sampling})})


def identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that a pre-flight depends on."""
    policy = {"checkpoint", "statistics", "kind", "dtype", "options", "sampling"}
    return {
        "policy": config.policy.model_dump(mode="json", include=policy),
        "simulator": config.simulator.model_dump(mode="json", include={"name", "horizon", "options"}),
        "preflight": config.preflight.model_dump(mode="json"),
        "success": config.evaluation.success,
    }


def read_preflight(directory: Path, config: TrainConfig, *, begun: bool) -> Preflight | None:
    """What the run of this config tried before; None where it did not. Raises OutputError where it has begun and what
    it tried is lost.
    """
    path = directory / PREFLIGHT_FILE
    found = read_json(path, OutputError) if path.is_file() else None
    if isinstance(found, dict) and found.get("settings") == identity(config):
        return found
    if begun:
        raise OutputError(
            f"{path}: {'of other settings' if path.is_file() else 'missing'}; it says at which temperature this run "
            "trains. Put it back, or begin anew under another name=..."
        )
    return None


def write_preflight(directory: Path, preflight: Preflight) -> None:
    """Keep it with the run. Raises OutputError."""
    write_atomically(directory / PREFLIGHT_FILE, to_json(preflight) + "\n")


def _measure(
    config: TrainConfig, base: Path, device: torch.device, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Facts of the policy, its success without exploration, and at each temperature."""
    policy = load_configured(base, config.policy, device=str(device)).eval()
    slots = min(config.simulator.slots, config.preflight.episodes)
    plan = plan_crew(config.simulator, config.collection, slots=slots, accelerated=device.type != "cpu")
    with Crew(plan) as crew, naming_what_to_lower(config, "playing"):
        check_dimensions(crew, policy.action_dim)

        def measure(temperature: float) -> dict[str, Any]:
            found = _rate(_play(config, policy, crew, temperature), config)
            with_it = f"at temperature {temperature:g}" if temperature else "without exploration"
            low, high = found["ci95"]
            say(f"pre-flight: success {found['success']:.1%} ({low:.0%} to {high:.0%}) {with_it}")
            return found

        still, trials = measure(0.0), list[dict[str, Any]]()
        for temperature in candidates(config, policy):
            trials.append({"temperature": temperature, **measure(temperature)})
            # More noise is no better than less.
            if trials[-1]["success"] < config.preflight.keep * still["success"]:
                break
    return policy.describe(), still, trials


def _play(config: TrainConfig, policy: Policy, crew: Crew, temperature: float) -> list[EpisodeResult]:
    """The first training scenarios, as rollouts play them, each with its own noise at every temperature."""
    count = min(config.preflight.episodes, crew.count("train", "train"))
    source = ScenarioList(("train", "train"), range(count), crew.rows)
    sampling = replace(Sampling(**config.policy.sampling.model_dump()), temperature=temperature)
    played = play(Lanes(crew, Session(config.simulator.horizon), source, policy.chunk), Actor(policy, sampling))
    return list(played.results.values())


def _rate(results: list[EpisodeResult], config: TrainConfig) -> dict[str, Any]:
    found = summarize_suite("train", results, config.evaluation.success)
    return {name: found[name] for name in ("success", "episodes", "ci95", "mean_return")}
