"""Memory of the C library. Imports the standard library alone."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt(3): bytes from which on free memory goes back, that stay at the end of a heap, and from
which on a block has pages of its own.
"""
_HEAP = 2**26
"""The size of a thread's heap in glibc; where this much is to stay at its end, a heap is never given back."""
_LARGEST = 2**30


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for the next who asks, instead of giving it back to the system.

    What is given back costs a page fault for every page when it is taken again. Left alone, glibc gives back large
    blocks, such as tensors, and what chances to lie at the end of a heap: of some processes, for as long as they live,
    all the memory that Mesa's software renderer takes for a frame, which is tens of megabytes. In runs by turns on two
    cores, updates of the quickstart took 3.2 and 3.5 s where it is kept, 3.8 and 3.7 s where not. Elsewhere (macOS,
    musl) memory is left as it is.
    """
    with suppress(OSError, AttributeError, TypeError):
        tune = ctypes.CDLL(None).mallopt
        for option, size in ((_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _HEAP), (_MMAP_THRESHOLD, _LARGEST)):
            tune(option, size)


def available_memory() -> int:
    """Bytes that this machine can give to programs; all that it has, where the system does not say what is taken."""
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
