"""Elements of training state per rank: what a stage holds, what a rank owns of it, and what it mirrors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

from trainsys.config import ModelConfig
from trainsys.models.geometry import tensors
from trainsys.planner.stages import Stages


@dataclass(frozen=True)
class StageSizes:
    """Elements on one rank of each stage.

    Attributes:
        held: parameters of the rank's tp shard of its stage; a tied embedding is held by first and last stage.
        owned: of those, the elements whose master copy and moments the rank updates.
        mirrored: elements whose master copy and moments it keeps for a peer, because nobody else has them.
        tied: elements of a tied embedding's tp shard, 0 without one.
    """

    held: tuple[int, ...]
    owned: tuple[int, ...]
    mirrored: tuple[int, ...]
    tied: int


def stage_sizes(model: ModelConfig, stages: Stages, zero: int) -> StageSizes:
    """ZeRO 0 owns all that the stage holds, ZeRO 1 to 3 its share among the replicas (Rajbhandari et al. 2020, §5.1).

    A piece that would live on one rank only (ZeRO 1 to 3, or a stage with one replica) is mirrored, unless the rank is
    alone.
    """
    by_block, tied = _elements(model, stages.tp)
    held = [sum(by_block.get(block, 0) for block in stages.blocks(stage)) for stage in range(stages.count)]
    if tied and stages.count == 1:
        held[0] -= tied  # one rank needs it once
    owned = [-(-n // dp) if zero else n for n, dp in zip(held, stages.replicas, strict=True)]
    single = [stages.num_ranks > 1 and (zero > 0 or dp == 1) for dp in stages.replicas]
    mirrored = [n if alone else 0 for n, alone in zip(owned, single, strict=True)]
    return StageSizes(tuple(held), tuple(owned), tuple(mirrored), tied)


@lru_cache(maxsize=128)
def _elements(model: ModelConfig, tp: int) -> tuple[dict[int, int], int]:
    """Elements of one tp shard per block, and of a tensor that two blocks use."""
    by_block: dict[int, int] = {}
    tied = 0
    for tensor in tensors(model):
        count = prod(tensor.local_shape(tp))
        for block in tensor.blocks:
            by_block[block] = by_block.get(block, 0) + count
        tied += count if len(tensor.blocks) > 1 else 0
    return by_block, tied


@lru_cache(maxsize=128)
def shared_elements(model: ModelConfig, tp: int) -> tuple[tuple[int, int, int], ...]:
    """(block, tp ranks that hold copies, elements of a copy) of each split tensor of which neighbours hold the same."""
    split = [t for t in tensors(model) if t.split is not None and t.copies(tp) > 1]
    return tuple((t.block, t.copies(tp), prod(t.local_shape(tp))) for t in split)


def block_elements(model: ModelConfig, tp: int) -> dict[int, int]:
    """Elements of one tp shard, per model block."""
    return _elements(model, tp)[0]
