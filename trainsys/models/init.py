"""Initial values that depend on the logical coordinate alone, so that every layout starts from the same model."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainsys.config import ModelConfig
from trainsys.models.geometry import family_of
from trainsys.models.keyed import stream
from trainsys.models.vocab_parts import whole_of
from trainsys.space.tensor import LogicalTensor

ROWS = 64  # rows of dim 0 that share one random stream: the price of an unaligned box is at most one block of rows
STD = 0.02  # Radford et al. 2019


def init_box(
    tensor: LogicalTensor, start: tuple[int, ...], stop: tuple[int, ...], seed: int, config: ModelConfig
) -> Tensor:
    """float32 initial values of the box [start, stop) of `tensor`, equal to that slice of the whole tensor.

    Norm weights are 1, biases 0, matrices normal with std 0.02; those that write into the residual stream are smaller
    by 1/√(2·num_layers) (Radford et al. 2019, §2.3). Random numbers are keyed by (seed, name, block of 64 rows), of
    a part of the vocabulary those of the whole; no more than one such block exists besides the result, and it stays for
    the next box.
    """
    assert len(start) == len(stop) == len(tensor.shape), (tensor, start, stop)
    assert all(0 <= a <= b <= n for a, b, n in zip(start, stop, tensor.shape, strict=True)), (tensor, start, stop)
    shape = tuple(b - a for a, b in zip(start, stop, strict=True))
    if len(tensor.shape) == 1:
        return torch.zeros(shape) if tensor.name.endswith(".bias") else torch.ones(shape)
    residual = tensor.name.endswith(family_of(config).residual_outputs)
    std = np.float32(STD / sqrt(2 * config.num_layers) if residual else STD)
    values = np.empty(shape, dtype=np.float32)
    if values.size == 0:
        return torch.from_numpy(values)
    columns = tuple(slice(a, b) for a, b in zip(start[1:], stop[1:], strict=True))
    name, shift = whole_of(config, tensor.name)
    begin, end = start[0] + shift, stop[0] + shift
    rows = tensor.shape[0] if name == tensor.name else config.vocab_size
    for block in range(begin // ROWS, -(-end // ROWS)):
        base = block * ROWS
        first, last = max(begin, base), min(end, base + ROWS)
        draws = _draws(seed, name, block, (min(ROWS, rows - base), *tensor.shape[1:]))
        values[first - begin : last - begin] = draws[(slice(first - base, last - base), *columns)] * std
    return torch.from_numpy(values)


@lru_cache(maxsize=1)
def _draws(seed: int, name: str, block: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """One block of rows. The last one is kept: a state is filled piece by piece, and many pieces share a block."""
    return stream(seed, name, block).standard_normal(shape, dtype=np.float32)
