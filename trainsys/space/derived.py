"""State that has not its parameter's shape, as logical tensors of their own: block scales, factored moments.

Such a tensor lives where its parameter does: the same blocks, the same expert, cut over tp by the same cuts. Where a
cut of the parameter would go through a block, neighbours hold copies of all the scales between two cuts that do not.
Every tp rank so has what belongs to its shard, and layouts, transitions, hashes and checkpoints need to know no more.
"""

from __future__ import annotations

from dataclasses import replace

from trainsys.space.box import Box
from trainsys.space.tensor import LogicalTensor


def block_scales(tensor: LogicalTensor, block: int = 128) -> LogicalTensor:
    """One scale per block of `block` elements along each dim, the last ones smaller.

    As in fp8 training with 128 · 128 blocks of weights (DeepSeek-V3, arXiv:2412.19437, §3.3.2).

    Returns:
        ``<name>.scales`` of shape ceil(n / block) along each dim.

    Raises:
        ValueError: the block is empty, or the tensor has no dims.
    """
    if block < 1 or not tensor.shape:
        raise ValueError(f"{tensor.name}{list(tensor.shape)} has no blocks of {block} elements; give at least 1")
    cuts = None
    if tensor.split is not None:
        blocks, rest = divmod(tensor.shape[tensor.split], block)
        cuts = 1 if rest else blocks
    shape = tuple(-(-n // block) for n in tensor.shape)
    return replace(tensor, name=f"{tensor.name}.scales", shape=shape, partial=None, cuts=cuts)


def scales_of(box: Box, block: int = 128) -> Box:
    """The scales that the elements of a parameter's box are multiplied with."""
    return Box(tuple(n // block for n in box.start), tuple(-(-n // block) for n in box.stop))


def row_moment(tensor: LogicalTensor) -> LogicalTensor:
    """Adafactor's second moment of the rows: the last dim is summed (Shazeer & Stern 2018, arXiv:1804.04235, §3).

    Returns:
        ``<name>.exp_avg_sq_row``, replicated over tp where tp cuts the columns: there it is a sum over all tp ranks.

    Raises:
        ValueError: fewer than two dims, of which the paper keeps the moment whole.
    """
    return _without(tensor, len(tensor.shape) - 1, "exp_avg_sq_row")


def column_moment(tensor: LogicalTensor) -> LogicalTensor:
    """The same of the columns: the last dim but one is summed. ``<name>.exp_avg_sq_col``. Raises as `row_moment`."""
    return _without(tensor, len(tensor.shape) - 2, "exp_avg_sq_col")


def rows_of(box: Box) -> Box:
    """The elements of the row moment that a parameter's box is divided by."""
    return Box(box.start[:-1], box.stop[:-1])


def columns_of(box: Box) -> Box:
    """The same of the column moment."""
    return Box((*box.start[:-2], box.start[-1]), (*box.stop[:-2], box.stop[-1]))


def _without(tensor: LogicalTensor, dim: int, suffix: str) -> LogicalTensor:
    """`tensor` with one dim summed away."""
    if len(tensor.shape) < 2:
        raise ValueError(
            f"{tensor.name}{list(tensor.shape)} has one dim, of which no moment is factored; keep it whole"
        )
    shape = tuple(n for d, n in enumerate(tensor.shape) if d != dim)
    whole = replace(tensor, name=f"{tensor.name}.{suffix}", shape=shape, split=None, partial=None)
    if tensor.split in (None, dim):
        return replace(whole, max_shards=None, cuts=None)
    return replace(whole, split=tensor.split - (tensor.split > dim))
