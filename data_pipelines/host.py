"""What the host gives: its cores, and buffers that JAX takes over as they are."""

import os

import numpy as np

_ALIGNMENT = 64  # bytes; JAX uses a host buffer that is aligned so in place


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def aligned_empty(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Returns an uninitialised array that starts at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
