"""From the minibatches of an update to its metrics."""

from collections.abc import Sequence

from treadle.training.on_policy.gradient import MinibatchResult


def summarize(results: Sequence[MinibatchResult], norms: Sequence[float], decisions: int) -> dict[str, float]:
    """Metrics of all minibatches of an update, in order.

    Args:
        results: of each minibatch.
        norms: of the policy's gradient at each step.
        decisions: that the update trains on.
    """

    def mean(name: str) -> float:
        return mean_of([result[name] for result in results])

    first, last = results[0], results[-1]
    metrics = {
        "update/policy_loss": mean("loss"),
        "update/approximate_kl": mean("kl"),
        "update/last_kl": last["kl"],
        "update/clip_share": mean("clip_share"),
        "update/ratio_min": min(result["ratio_min"] for result in results),
        "update/ratio_max": max(result["ratio_max"] for result in results),
        "update/ratio_max_negative": max(result["ratio_max_negative"] for result in results),
        "update/entropy": mean("entropy"),
        "update/reference_kl": mean("reference_kl"),
        "update/stale_weight": mean("stale_weight"),
        # Kish's effective sample size, of the ratios as weights.
        "update/effective_samples": decisions * mean("ratio_mean") ** 2 / max(mean("ratio_square"), 1e-12),
        "update/steps": float(len(results)),
        "update/gradient_norm": mean_of(norms),
    }
    if first["gap_count"]:
        # Before the first step, rollout and trainer have the same weights.
        metrics["update/log_prob_gap"] = first["gap_max"]
        metrics["update/log_prob_gap_mean"] = first["gap_sum"] / first["gap_count"]
        metrics["update/first_kl"] = first["kl"]
    return metrics


def mean_of(values: Sequence[float]) -> float:
    """The mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
