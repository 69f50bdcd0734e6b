"""Process settings for fast training on CPUs; call `prepare` before torch starts its threads."""

from __future__ import annotations

import ctypes
import os

import torch

# glibc's mallopt parameters (malloc.h)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
LARGE_MODEL = 2**28  # bytes of weights


def prepare() -> None:
    """Flush denormals, and share the cores among ranks unless OMP_NUM_THREADS is set.

    Gaussians of large distances underflow to denormals, with which many CPUs compute very slowly.
    """
    torch.set_flush_denormal(True)
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))


def set_memory_policy(model_bytes: int) -> None:
    """Make glibc keep the memory of freed tensors, or return it to the system for large models.

    Memory from the system costs a page fault for every 4 KiB, which takes longer than most of the
    arithmetic on it. The heap of a large model, though, would double by fragmentation.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    if model_bytes < LARGE_MODEL:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    else:
        mallopt(_M_MMAP_THRESHOLD, 2**20)
