"""What the host gives: its cores, and memory that JAX takes over as it is."""

import os
import weakref
from collections import deque

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


class Memory:
    """Gives out memory, that of earlier arrays which nothing refers to any more where it fits.

    Fresh memory is cleared by the kernel, page by page, and threads wait for one another there: for batches alone up
    to a tenth of what decoding costs. JAX may alias an array for as long as it is in use; it then refers to it, so that
    its memory is not given out again.
    """

    def __init__(self):
        self._free: deque[np.ndarray] = deque()

    def __reduce__(self) -> tuple:
        """In another process, memory of its own."""
        return Memory, ()

    def empty(self, size: int) -> np.ndarray:
        """Returns an uninitialised array, uint8 [size], that starts at a multiple of 64 bytes."""
        memory = self._fitting(size)
        if memory is None:
            memory = aligned_empty((size,), np.uint8)
        # All views of this array refer to it, and to nothing behind it, as its memory is not that of an array but of
        # a memoryview. So when it dies, they are all gone.
        whole = np.frombuffer(memoryview(memory)[:size], np.uint8)
        weakref.finalize(whole, self._free.append, memory).atexit = False
        return whole

    def _fitting(self, size: int) -> np.ndarray | None:
        # Without a lock: an array may die, and its memory come in, at any moment and in any thread, this one included.
        try:
            for _ in range(len(self._free)):
                memory = self._free.popleft()
                if size <= len(memory) <= 2 * size:
                    return memory
                self._free.append(memory)
            self._free.popleft()  # in exchange for the new one, so that sizes that no one asks for do not pile up
        except IndexError:
            pass
        return None
