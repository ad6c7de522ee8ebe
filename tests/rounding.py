"""What rounds otherwise on another processor.

Where a processor multiplies bfloat16 in hardware (AVX-512 BF16, AMX), products of bfloat16 are summed in another order
than where they are float32 products of the same numbers. Fixtures are of a processor of the second kind.
"""

import torch
from torch import Tensor

from treadle.devices import computes_bfloat16

HARDWARE = computes_bfloat16(torch.device("cpu"))
"""Whether this one does."""


def is_same(found: Tensor, expected: Tensor, rounding: float) -> bool:
    """Equality to the last bit; in hardware, but for `rounding`, as a share of the largest number."""
    if not HARDWARE:
        return torch.equal(found, expected)
    return found.shape == expected.shape and bool((found - expected).abs().max() <= rounding * expected.abs().max())
