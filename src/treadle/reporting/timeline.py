"""The timeline of a run: a trace for Perfetto or chrome://tracing, and its drawing in the report."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from treadle.data.span import Span
from treadle.files import to_json, write_atomically

TRACE_FILE = "trace.json"
ROLES = ("simulate", "generate", "train")
_COLOURS = 4
_WIDTH, _ROW, _GAP, _LEFT, _BOTTOM = 1000, 22, 6, 96, 24
_MOST = 3000
"""Bars that are drawn; of a longer iteration, its beginning."""


class TraceWriter:
    """Keeps the spans of the latest iterations in `trace.json`, in the Trace Event Format of Chrome.

    Raises OutputError, on writing, where the folder cannot be written.
    """

    def __init__(self, run_dir: Path, iterations: int) -> None:
        self._path = run_dir / TRACE_FILE
        self._kept: deque[list[dict[str, Any]]] = deque(maxlen=iterations)

    def write(self, iteration: int, spans: Iterable[Span]) -> None:
        """Add an iteration, and write the file; with no iterations to keep, do nothing."""
        if self._kept.maxlen:
            self._kept.append([_event(span, iteration) for span in spans])
            events = [event for kept in self._kept for event in kept]
            write_atomically(self._path, to_json({"traceEvents": [*_names(events), *events]}, indent=None) + "\n")


def timeline_svg(trace: Mapping[str, Any] | None) -> str:
    """The last iteration of a trace: a row for each worker of each role, bars coloured by lane."""
    bars = [event for event in (trace or {}).get("traceEvents", ()) if event.get("ph") == "X"]
    if not bars:
        return '<p class="missing">This run has kept no timeline.</p>'
    last = max(bar["args"]["iteration"] for bar in bars)
    bars = sorted((bar for bar in bars if bar["args"]["iteration"] == last), key=lambda bar: bar["ts"])[:_MOST]
    tracks = sorted({(bar["pid"], bar["tid"]) for bar in bars})
    start, end = bars[0]["ts"], max(bar["ts"] + bar["dur"] for bar in bars)
    scale = (_WIDTH - _LEFT) / max(end - start, 1)
    height = len(tracks) * (_ROW + _GAP) + _BOTTOM
    parts = [
        f'<svg class="chart timeline" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Timeline of an iteration">'
    ]
    for row, (role, worker) in enumerate(tracks):
        y = row * (_ROW + _GAP)
        several = sum(track[0] == role for track in tracks) > 1
        name = f"{ROLES[role]} {worker}" if several else ROLES[role]
        parts.append(f'<path class="grid" d="M{_LEFT} {y + _ROW}H{_WIDTH}"/>')
        parts.append(f'<text x="0" y="{y + _ROW - 7}">{escape(name)}</text>')
    for bar in bars:
        x, width = _LEFT + (bar["ts"] - start) * scale, max(bar["dur"] * scale, 0.3)
        y = tracks.index((bar["pid"], bar["tid"])) * (_ROW + _GAP)
        lanes = bar["args"]["lanes"]
        colour = lanes[0] % _COLOURS if len(lanes) == 1 else _COLOURS
        parts.append(
            f'<rect class="s{colour}" fill="var(--color)" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW}">'
            f"<title>{escape(bar['name'])}: {bar['dur'] / 1000:.1f} ms</title></rect>"
        )
    seconds = (end - start) / 1e6
    for i in range(6):
        x, anchor = _LEFT + (_WIDTH - _LEFT) * i / 5, "end" if i == 5 else "middle"
        parts.append(f'<text x="{x:.0f}" y="{height - 4}" text-anchor="{anchor}">{seconds * i / 5:.3g} s</text>')
    parts.append("</svg>")
    return f'<figure class="scroll"><figcaption>Iteration {last}</figcaption>{"".join(parts)}</figure>'


def idle_shares(played: Mapping[str, float], iteration: float, update: float) -> dict[str, float]:
    """The share of the time in which a role had nothing to do, as metrics: simulator and policy while it is collected,
    collecting (`idle/collect`) and training (`idle/train`) in the whole iteration; seconds.
    """
    whole = played["time/collect"]
    shares = {role: played[f"time/{role}"] / whole for role in ("simulate", "generate")}
    shares |= {"collect": whole / iteration, "train": update / iteration}
    return {f"idle/{role}": max(0.0, 1 - share) for role, share in shares.items()}


def _event(span: Span, iteration: int) -> dict[str, Any]:
    lanes = list(span.lanes)
    return {
        "name": f"lane {' + '.join(map(str, lanes))}" if lanes else span.role,
        "cat": span.role,
        "ph": "X",
        "ts": round(span.began * 1e6, 1),
        "dur": round((span.ended - span.began) * 1e6, 1),
        "pid": ROLES.index(span.role),
        "tid": span.worker,
        "args": {"iteration": iteration, "lanes": lanes},
    }


def _names(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What Perfetto shows beside the tracks."""
    names = [
        {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": ROLES[pid]}}
        for pid in sorted({event["pid"] for event in events})
    ]
    threads = [
        {"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "args": {"name": f"{ROLES[pid]} {tid}"}}
        for pid, tid in sorted({(event["pid"], event["tid"]) for event in events})
    ]
    return names + threads
