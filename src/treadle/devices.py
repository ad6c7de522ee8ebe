"""Which device computes."""

import torch

from treadle.cores import usable_cores
from treadle.errors import ConfigError
from treadle.memory import keep_freed_memory

_UNKNOWN = "device string"
"""In what torch says of a name that is none; it then lists every kind of device that there is anywhere."""


def choose_device(name: str | torch.device) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one, else the CPU.

    Raises ConfigError for an unknown name, or a device that this machine lacks.
    """
    if name == "auto":
        # Apple's GPU has no float64, which tokens are drawn and decoded in.
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise _unusable(name, "torch knows none of that name" if _UNKNOWN in reason else reason) from error
    if device.type == "meta":
        raise _unusable(name, "it holds no numbers")
    return device


def peak_gpu_mb() -> float:
    """The most memory that tensors of this process have held on graphics cards, all together, in MB; 0 without any."""
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return sum(torch.cuda.max_memory_allocated(card) for card in cards) / 1e6


def _unusable(name: object, reason: str) -> ConfigError:
    return ConfigError(f"device {name!r} cannot be used ({reason}); choose auto, cpu, cuda or cuda:N")


def prepare_cpu(threads: int) -> None:
    """Let torch use so many threads, 0 for every core that this process may run on, and keep the memory it frees."""
    torch.set_num_threads(threads or len(usable_cores()))
    keep_freed_memory()


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; where it does not, float32 is the faster of the two."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
