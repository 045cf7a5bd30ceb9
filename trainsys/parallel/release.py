"""Giving memory back in pieces: pages of a flat CPU tensor whose elements nobody needs any more (``madvise``).

A page is given back when the last element on it goes. Reading it afterwards gives zeros; writing brings it back. Memory
of CUDA is allocated and freed as a whole, so there is nothing of the kind for it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from trainsys.parallel.pages import advise

PAGE = mmap.PAGESIZE


def empty_pages(numel: int, dtype: torch.dtype) -> Tensor:
    """A flat CPU tensor with memory of its own, of which only those pages are resident that were written."""
    if not numel:
        return torch.empty(0, dtype=dtype)
    memory = mmap.mmap(-1, numel * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return small_pages(torch.frombuffer(memory, dtype=dtype))


def small_pages(tensor: Tensor) -> Tensor:
    """Have no huge pages made of the tensor's memory, which would be resident as a whole; returns the tensor."""
    begin = tensor.data_ptr() // PAGE * PAGE
    advise(begin, tensor.data_ptr() + tensor.nbytes - begin, "MADV_NOHUGEPAGE")
    return tensor


class Pages:
    """Counts the elements alive on each page of a flat tensor, and gives back the pages that have none.

    Args:
        full: all of them are alive; else none, and nothing has been written yet.

    Attributes:
        resident_bytes: of the pages that are kept.
    """

    def __init__(self, tensor: Tensor, full: bool) -> None:
        self._tensor, self._item = tensor, tensor.element_size()
        self._shift = tensor.data_ptr() % PAGE  # of the first element within its page
        self._base = tensor.data_ptr() - self._shift
        self._live = np.zeros(-(-(self._shift + tensor.nbytes) // PAGE), dtype=np.int32)  # bytes
        self.resident_bytes = 0
        if full and tensor.nbytes:
            self.add(0, tensor.numel())
            if self._shift:
                self._live[0] += 1  # others may live on the same page
            if (self._shift + tensor.nbytes) % PAGE:
                self._live[-1] += 1

    def add(self, offset: int, numel: int) -> None:
        """The elements will be written."""
        first, stop = self._change(offset, numel, 1)
        fresh = stop - first
        for page in {first, stop - 1}:
            fresh -= int(self._live[page]) > self._part(page, offset, numel)  # was alive before
        self.resident_bytes += fresh * PAGE

    def remove(self, offset: int, numel: int) -> None:
        """The elements are not needed any more."""
        first, stop = self._change(offset, numel, -1)
        first += int(self._live[first]) > 0
        stop -= stop > first and int(self._live[stop - 1]) > 0
        if stop > first:
            self.resident_bytes -= (stop - first) * PAGE
            advise(self._base + first * PAGE, (stop - first) * PAGE, "MADV_DONTNEED")

    def _change(self, offset: int, numel: int, sign: int) -> tuple[int, int]:
        """Count the elements in or out; the pages that they touch."""
        begin, end = self._shift + offset * self._item, self._shift + (offset + numel) * self._item
        first, last = begin // PAGE, (end - 1) // PAGE
        for page in {first, last}:
            self._live[page] += sign * self._part(page, offset, numel)
        self._live[first + 1 : last] += sign * PAGE
        return first, last + 1

    def _part(self, page: int, offset: int, numel: int) -> int:
        """Bytes of the elements that lie on a page."""
        begin, end = self._shift + offset * self._item, self._shift + (offset + numel) * self._item
        return min(end, (page + 1) * PAGE) - max(begin, page * PAGE)


def resident_bytes(pages: Iterable[Pages]) -> int:
    return sum(p.resident_bytes for p in pages)
