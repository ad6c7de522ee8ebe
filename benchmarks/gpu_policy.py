"""The 7B policies on one GPU, in one call of under ten minutes: `python -m benchmarks.gpu_policy`.

Needs about 80 GB of GPU memory. `--size tiny --device cpu` goes through the same on any machine. Writes
`benchmarks/results/policy-<size>-<device>.json`, or the file that `--json` names.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import policy as benchmark
from benchmarks.output import RESULTS
from treadle.devices import choose_device
from treadle.errors import TreadleError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="7b", help="tiny, 200m or 7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--train", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--compile", action="store_true", help="act through compiled blocks")
    parser.add_argument("--limit", type=float, default=420.0, help="seconds after which no further row is begun")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        device = choose_device(given.device)
        benchmark.run(
            given.json or RESULTS / f"policy-{given.size}-{device.type}.json",
            sizes=[given.size],
            batches=given.batch,
            training_batches=given.train,
            device=given.device,
            dtype=given.dtype,
            compiled=given.compile,
            limit=given.limit,
        )
    except TreadleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
