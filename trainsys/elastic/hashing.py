"""A hash of training state that does not depend on how the state is cut.

The hash of a set of elements is the sum modulo 2⁶⁴ of bits(x) · (2·coordinate + 1) · K, where the coordinate is the
row-major number of the element in its whole tensor, and bits(x) the integer with the float's bits (of fp64: xor its
upper half). Sums over any parts add up to the whole's; swapped, shifted and stale elements change it, and so do missing
ones that are not zero (elements are counted, too).
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from trainsys.parallel.state import FlatState
from trainsys.space.tensor import SLOTS, LogicalTensor

MASK = (1 << 64) - 1
_K = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio
_BLOCK = 1 << 16  # elements at a time: what is computed from them stays in the cache

Hashes = tuple[int, ...]  # one per slot


def hash_run(
    state: FlatState, offset: int, tensor: LogicalTensor, tp: int, shard: int, start: int, stop: int
) -> Hashes:
    """Hashes of the elements ``[start, stop)`` of the row-major shard of tp rank `shard`.

    Args:
        offset: where in the flat slots of `state` they begin.
    """
    totals = [0] * len(SLOTS)
    for first in range(start, stop, _BLOCK):
        last = min(first + _BLOCK, stop)
        at = offset + first - start
        values = [state.slots[slot][at : at + last - first] for slot in SLOTS]
        for i, value in enumerate(hash_block(values, weights_of(tensor, tp, shard, first, last, values[0].device))):
            totals[i] = (totals[i] + value) & MASK
    return tuple(totals)


def hash_block(values: list[Tensor], weights: Tensor) -> Hashes:
    """One hash per tensor of `values`, fp32 or fp64, each as long as `weights`."""
    together = torch.stack(values)
    if together.dtype == torch.float32:
        bits = together.view(torch.int32).to(torch.int64)
    else:
        bits = together.view(torch.int64)
        bits = bits ^ (bits >> 32)  # else a swap of values that differ in their topmost bits alone would sum to 0
    return tuple(int(total) & MASK for total in bits.mul_(weights).sum(1).tolist())


def weights_of(tensor: LogicalTensor, tp: int, shard: int, first: int, last: int, device: torch.device) -> Tensor:
    """(2·coordinate + 1) · K of the elements ``[first, last)`` of a shard, modulo 2⁶⁴ in signed integers."""
    shape, origin = tensor.local_shape(tp), tensor.local_origin(tp, shard)
    strides = [prod(tensor.shape[d + 1 :]) for d in range(len(shape))]
    begin = sum(o * s for o, s in zip(origin, strides, strict=True))
    if shape[1:] == tensor.shape[1:]:  # the shard is one run of the tensor
        return _even(device)[: last - first] + signed((2 * (begin + first) + 1) * _K)
    coordinate = torch.full((last - first,), begin, dtype=torch.int64, device=device)
    rest = torch.arange(first, last, device=device)
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        coordinate += rest % size * stride
        rest = rest // size
    return (2 * coordinate + 1) * signed(_K)


@lru_cache(maxsize=1)
def _even(device: torch.device) -> Tensor:
    """0, 2·K, 4·K, … for a block."""
    return torch.arange(_BLOCK, device=device) * signed(2 * _K)


def signed(value: int) -> int:
    """The signed 64-bit integer with the same bits as `value` modulo 2⁶⁴."""
    value &= MASK
    return value - (1 << 64) if value >> 63 else value
