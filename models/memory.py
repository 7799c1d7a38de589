"""glibc's malloc, made to keep what training frees.

It returns large blocks to the kernel at once, and each training step pays for thousands of page
faults again: by chance of the layout 57 ms a step instead of 29 (variant A at 64 px, width 16).
A process then stays at its peak size instead.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_THRESHOLD: 2**30}

# The same for processes yet to start. Only so does it hold in threads too, where a Ray worker
# trains: one arena, because the others give every block over 64 MB back.
MEMORY_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES[M_TRIM_THRESHOLD]),
    "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES[M_MMAP_THRESHOLD]),
}


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next tensors; call it once, before training.

    Returns:
        Whether it worked; False where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) for option in KEPT_BYTES.items())
