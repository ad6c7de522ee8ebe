"""Which curves the report shows, and how."""

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape

from treadle.reporting.folder import RunFolder
from treadle.reporting.plots import Axes, Series, chart, sparkline_svg

ROLES = ("simulate", "generate", "update", "critic")
_WORDS = {"collect": "playing", "train": "training"}
_LEAST = 1e-9
"""Where decades are shown, what is less stands here, and so does 0."""
_GAP = "nats; 0 stands at 1e-9"
_EVEN = 0.1
"""Shares of time that differ by less need no other division."""


def learning_curves(run: RunFolder) -> str:
    """Success over iterations and wall time, return, length, throughput and time per role."""
    iterations = run.series("iteration")
    minutes = [seconds / 60 for seconds in run.series("seconds")]
    success = Axes("iteration", "of episodes", low=0.0, high=1.0, percent=True)
    levels = _evaluated(run)
    charts = [
        _single(run, "Success in rollouts", "rollout/success", success, levels=levels),
        _single(run, "Success over wall time", "rollout/success", replace(success, x_label="minutes"), minutes, levels),
        _single(run, "Return", "rollout/return", Axes("iteration", "sum of rewards")),
        _single(run, "Episode length", "rollout/length", Axes("iteration", "control steps", low=0)),
        _single(run, "Throughput", "speed/control_steps_per_second", Axes("iteration", "control steps/s", low=0)),
        _times(run, iterations),
        *_evaluations(run, success),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def health_curves(run: RunFolder) -> str:
    """The curves that show whether the update does what it should, as far as the algorithm records them."""
    known = (
        ("Approximate KL", "update/approximate_kl", Axes("iteration", "nats", low=0)),
        ("Clipped share of ratios", "update/clip_share", Axes("iteration", "of entries", low=0, percent=True)),
        ("Explained variance", "critic/explained_variance", Axes("iteration", "1 is perfect", high=1)),
        ("Log-prob gap of rollout and update", "update/log_prob_gap", Axes("iteration", _GAP, decades=True)),
        ("Entropy", "update/entropy", Axes("iteration", "nats")),
        ("Gradient norm", "update/gradient_norm", Axes("iteration", "before clipping", low=0)),
        ("Policy loss", "update/policy_loss", Axes("iteration", "")),
    )
    charts = [_single(run, title, key, axes) for title, key, axes in known if key in run.metric_keys()]
    return f'<div class="charts">{"".join(charts)}</div>'


def role_bar(run: RunFolder) -> str:
    """Time per role over the whole training, as one bar with its legend; what no role accounts for is `other`."""
    totals = [(role, _sum(run.series(f"time/{role}"))) for role in ROLES if f"time/{role}" in run.metric_keys()]
    rest = _sum(run.series("time/iteration")) - sum(seconds for _, seconds in totals)
    # Roles that overlap sum to more than the clock; then there is no rest to speak of.
    totals += [("other", rest)] if rest > 0 else []
    whole = sum(seconds for _, seconds in totals)
    if not whole:
        return '<p class="missing">No times yet.</p>'
    bars = "".join(f'<i class="s{_color(role)}" style="width:{seconds / whole:.2%}"></i>' for role, seconds in totals)
    legend = "".join(
        f'<li><b class="key s{_color(role)}"></b>{escape(role)} '
        f"<span>{100 * seconds / whole:.1f} % · {seconds:,.1f} s</span></li>"
        for role, seconds in totals
    )
    return f'<div class="bar">{bars}</div><ul class="legend">{legend}</ul>'


def idle_table(run: RunFolder) -> str:
    """The mean shares of time in which each role had nothing to do, and what to change."""

    def idle(*roles: str) -> dict[str, float]:
        finite = {role: [x for x in run.series(f"idle/{role}") if math.isfinite(x)] for role in roles}
        return {role: sum(values) / len(values) for role, values in finite.items() if values}

    def listed(shares: dict[str, float]) -> str:
        return ", ".join(f"{_WORDS.get(role, role)} {100 * share:.0f}&nbsp;%" for role, share in shares.items())

    played, whole = idle("simulate", "generate"), idle("collect", "train")
    said = [f"Idle while rollouts were played: {listed(played)}."] if played else []
    if len(whole) == 2:
        said.append(f"Idle in the whole iteration: {listed(whole)}. {_division(whole, run.config.get('overlap'))}")
    return f'<p class="note">{" ".join(said)}</p>' if said else ""


def _division(idle: dict[str, float], overlap: object) -> str:
    """Which role to give more, in a sentence."""
    most = max(idle, key=lambda role: idle[role])
    busier = "train" if most == "collect" else "collect"
    if overlap == "async":
        if idle[most] - idle[busier] < _EVEN:
            return "Both are busy for about as long: the division of devices fits."
        return f"{_WORDS[most].capitalize()} waits for {_WORDS[busier]}: give {_WORDS[busier]} more devices."
    # They take turns: what one is busy with could be done while the other works.
    gain = 1 / max(1 - idle["collect"], 1 - idle["train"], 0.5)
    if gain < 1 + _EVEN:
        return f"Nearly all of the time goes to {_WORDS[busier]}: give it more devices."
    return (
        "On devices of their own, at the same time (<code>overlap=async</code>), an iteration would be up to "
        f"{gain:.2f} times as fast."
    )


def metrics_table(run: RunFolder) -> str:
    """Every metric there is, known or not: its history, first, last, lowest and highest value."""
    rows: list[str] = []
    for key in run.metric_keys():
        values = [value for value in run.series(key) if math.isfinite(value)]
        if not values:
            rows.append(f"<tr><th>{escape(key)}</th><td></td>{'<td>not finite</td>' * 4}</tr>")
            continue
        numbers = "".join(
            f"<td>{format_number(value)}</td>" for value in (values[0], values[-1], min(values), max(values))
        )
        rows.append(f"<tr><th>{escape(key)}</th><td>{sparkline_svg(run.series(key))}</td>{numbers}</tr>")
    head = "<tr><th>metric</th><th></th><th>first</th><th>last</th><th>lowest</th><th>highest</th></tr>"
    return f'<div class="scroll"><table class="numbers">{head}{"".join(rows)}</table></div>'


def format_number(value: float) -> str:
    """A number to four digits, without an exponent where that is readable."""
    if value == int(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _single(
    run: RunFolder,
    title: str,
    key: str,
    axes: Axes,
    x: list[float] | None = None,
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    if key not in run.metric_keys():
        return _figure(title, f'<p class="missing">This run has not recorded {escape(key)}.</p>')
    values = run.series(key)
    if axes.decades:
        values = [math.log10(max(value, _LEAST)) if 0 <= value < math.inf else math.nan for value in values]
        known = [value for value in values if math.isfinite(value)]
        if known:
            low = math.floor(min(known))
            axes = replace(axes, low=low, high=max(math.ceil(max(known)), low + 1))
    drawn = chart(run.series("iteration") if x is None else x, [Series(title, values)], axes, levels=levels)
    return _figure(title, drawn, axes.y_label)


def _evaluated(run: RunFolder) -> list[tuple[str, float]]:
    """Success in distribution before and after, to compare curves with."""
    found = (("base, evaluated", run.base), ("final, evaluated", run.final))
    return [(name, of["suites"]["train"]["success"]) for name, of in found if of and "train" in of["suites"]]


def _times(run: RunFolder, iterations: list[float]) -> str:
    roles = [role for role in ROLES if f"time/{role}" in run.metric_keys()]
    series = [Series(role, run.series(f"time/{role}")) for role in roles]
    drawn = chart(iterations, series, Axes("iteration", "seconds", low=0), stacked=True)
    legend = "".join(f'<li><b class="key s{_color(role)}"></b>{role}</li>' for role in roles)
    return _figure("Time per role", drawn + f'<ul class="legend">{legend}</ul>', "seconds per iteration")


def _evaluations(run: RunFolder, axes: Axes) -> list[str]:
    """Success in the evaluations while training, of each suite."""
    keys = [key for key in run.metric_keys() if key.startswith("evaluation/")]
    if not keys:
        return []
    # Other iterations have none.
    at = [i for i, value in enumerate(run.series(keys[0])) if math.isfinite(value)]
    iterations = run.series("iteration")
    series = [Series(key.removeprefix("evaluation/"), [run.series(key)[i] for i in at]) for key in keys]
    legend = "".join(f'<li><b class="key s{i}"></b>{escape(line.label)}</li>' for i, line in enumerate(series))
    drawn = chart([iterations[i] for i in at], series, axes)
    return [_figure("Success in evaluations", drawn + f'<ul class="legend">{legend}</ul>', axes.y_label)]


def _figure(title: str, content: str, unit: str = "") -> str:
    note = f" <small>{escape(unit)}</small>" if unit else ""
    return f"<figure><figcaption>{escape(title)}{note}</figcaption>{content}</figure>"


def _color(role: str) -> int:
    return ROLES.index(role) if role in ROLES else len(ROLES)


def _sum(values: list[float]) -> float:
    return sum(value for value in values if math.isfinite(value))
