"""What the C library keeps of the memory that a step frees, for the next one."""

from __future__ import annotations

import ctypes
import sys

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_KEPT = 256 << 20  # bytes at the heap's end that stay with the process
_OWN_PAGES = 32 << 20  # from so many on an allocation has pages of its own; glibc takes no more


def keep_heap() -> None:
    """Give freed pages back to the system late (glibc only; elsewhere nothing happens).

    A step makes and frees the same few vectors as long as the gradient. By default each comes as fresh pages, which
    the kernel clears one by one: for three copies of 5 MiB that is 3,800 page faults, 11 ms where copying takes 2.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP, _OWN_PAGES)
            mallopt(_TRIM, _KEPT)
