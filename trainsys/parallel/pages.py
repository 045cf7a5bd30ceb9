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
    if tensor.device.type == "cpu":
        begin = -(-tensor.data_ptr() // _HUGE) * _HUGE
        advise(begin, (tensor.data_ptr() + tensor.nbytes - begin) // _HUGE * _HUGE, "MADV_HUGEPAGE")
    return tensor


def advise(begin: int, length: int, advice: str) -> None:
    """``madvise`` for an address range from the begin of a page on; where the system refuses, all stays as it was."""
    number = getattr(mmap, advice, None)
    if number is not None and length > 0:
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), number)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
