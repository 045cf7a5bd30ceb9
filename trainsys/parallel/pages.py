"""Huge pages for large buffers (Linux ``madvise``): the first touch of fresh memory costs half as much."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

from torch import Tensor

_HUGE = 2 << 20


def want_huge_pages(tensor: Tensor) -> Tensor:
    """Ask for huge pages under the CPU tensor's memory, where the system gives them on request; returns the tensor."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None and tensor.device.type == "cpu":
        begin = -(-tensor.data_ptr() // _HUGE) * _HUGE
        length = (tensor.data_ptr() + tensor.nbytes - begin) // _HUGE * _HUGE
        if length > 0:
            _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), advice)  # refused: small pages, as before
    return tensor


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
