"""Settings of the process that make CPU training fast; all must come before torch's threads."""

from __future__ import annotations

import ctypes
import os

import torch

# glibc's mallopt parameters (malloc.h)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def prepare() -> None:
    """Flush denormals and, unless OMP_NUM_THREADS says otherwise, share the cores among ranks.

    Gaussians of large distances underflow into denormals, on which many CPUs compute very slowly.
    """
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors instead of handing it back in every step.

    Fetching it anew costs a page fault for every 4 KiB, more than most of the arithmetic on it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
