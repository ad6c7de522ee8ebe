"""Which device computes."""

import ctypes
from contextlib import suppress

import torch

from treadle.cores import usable_cores
from treadle.errors import ConfigError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt(3): bytes from which on free memory goes back, and a block has pages of its own."""
_LARGEST = 2**30


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: An unknown name, or a device that this machine lacks.
    """
    if name == "auto":
        # Apple's GPU has no float64, which tokens are drawn and decoded in.
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]}); choose auto, cpu, cuda or cuda:N"
        ) from error
    return device


def prepare_cpu(threads: int) -> None:
    """Let torch use so many threads, 0 for every core that this process may run on, and keep the memory that it frees.

    glibc (mallopt(3)) then gives less back to the system: in runs by turns on two cores, updates of the quickstart took
    3.2 and 3.5 s with it, 3.8 and 3.7 s without. Elsewhere (macOS, musl) memory is left as it is.
    """
    torch.set_num_threads(threads or len(usable_cores()))
    with suppress(OSError, AttributeError, TypeError):
        tune = ctypes.CDLL(None).mallopt
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            tune(option, _LARGEST)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; where it does not, float32 is the faster of the two."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
