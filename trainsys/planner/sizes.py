"""Elements of training state per rank: what a stage holds, what a rank owns of it, and what it mirrors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from trainsys.config import ModelConfig, RunConfig
from trainsys.models.geometry import tensors
from trainsys.planner.stages import Stages


@dataclass(frozen=True)
class StageSizes:
    """Elements on one rank of each stage.

    Attributes:
        held: parameters of the rank's tp shard of its stage; a tied embedding is held by first and last stage.
        owned: of those, the elements whose master copy and moments the rank updates.
        mirrored: elements whose master copy and moments it keeps for peers, because too few others have them.
        tied: elements of a tied embedding's tp shard, 0 without one.
        experts: of `held`, what belongs to experts: under ep one class of them, the largest.
    """

    held: tuple[int, ...]
    owned: tuple[int, ...]
    mirrored: tuple[int, ...]
    tied: int
    experts: tuple[int, ...]


def team_tokens(config: RunConfig) -> int:
    """Tokens of one microbatch that a team computes: under cp the longest part of each sequence."""
    return config.batch.microbatch_size * -(-config.batch.seq_len // config.parallel.cp)


def stage_sizes(model: ModelConfig, stages: Stages, zero: int, tolerate: int = 1) -> StageSizes:
    """ZeRO 0 owns all that the stage holds, ZeRO 1 to 3 its share among the teams (Rajbhandari et al. 2020, §5.1).

    Every piece has `tolerate` holders beside one, as far as there are ranks: what lives on fewer (ZeRO 1 to 3, a stage
    with few teams, or a class of experts with few) is mirrored.
    """
    by_block, tied = _elements(model, stages.tp)
    dense = [sum(by_block.get(block, 0) for block in stages.blocks(stage)) for stage in range(stages.count)]
    if stages.vocabulary and model.tied:  # a rank needs its parts once
        dense = [n - _tables(model, stages.tp, stages.parts_with(stage)) for stage, n in enumerate(dense)]
        tied = 0
    elif tied and stages.head == 0:
        dense[0] -= tied  # one rank needs it once
    expert = _expert_elements(model, stages.tp)
    experts = [n * -(-model.num_experts // stages.ep) * expert for n in stages.layers]
    dense = [n - layers * model.num_experts * expert for n, layers in zip(dense, stages.layers, strict=True)]
    owned, mirrored, wanted = [], [], min(tolerate, stages.num_ranks - 1) + 1
    for stage, (shared, own) in enumerate(zip(dense, experts, strict=True)):
        shares = ((shared, stages.copies(stage)), (own, stages.copies(stage) // stages.ep))
        sizes = [-(-n // copies) if zero else n for n, copies in shares]
        owned.append(sum(sizes))
        mirrored.append(
            sum(_kept(n, 1 if zero else copies, wanted) for n, (_, copies) in zip(sizes, shares, strict=True))
        )
    held = tuple(a + b for a, b in zip(dense, experts, strict=True))
    return StageSizes(held, tuple(owned), tuple(mirrored), tied, tuple(experts))


def _kept(numel: int, holders: int, wanted: int) -> int:
    """Elements that a rank's peers keep for it, of `numel` that it and others hold; these take turns."""
    return -(-numel * max(0, wanted - holders) // max(1, holders))


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


def _tables(model: ModelConfig, tp: int, blocks: Sequence[int]) -> int:
    """Elements of one tp shard of the parts of the input table in `blocks`."""
    return sum(prod(t.local_shape(tp)) for t in tensors(model) if t.block > model.num_layers and t.block in blocks)


@lru_cache(maxsize=128)
def _expert_elements(model: ModelConfig, tp: int) -> int:
    """Elements of one tp shard of one expert of one layer."""
    return sum(prod(t.local_shape(tp)) for t in tensors(model) if t.block == 0 and t.expert == 0)


@lru_cache(maxsize=128)
def shared_elements(model: ModelConfig, tp: int) -> tuple[tuple[int, int, int], ...]:
    """(block, tp ranks that hold copies, elements of a copy) of each split tensor of which neighbours hold the same."""
    split = [t for t in tensors(model) if t.split is not None and t.copies(tp) > 1]
    return tuple((t.block, t.copies(tp), prod(t.local_shape(tp))) for t in split)


def block_elements(model: ModelConfig, tp: int, ep: int = 1) -> dict[int, int]:
    """Elements of one tp shard, per model block, with the experts of the largest of `ep` classes."""
    elsewhere = (model.num_experts - -(-model.num_experts // ep)) * _expert_elements(model, tp)
    layers = range(model.num_layers)
    return {block: n - elsewhere * (block in layers) for block, n in _elements(model, tp)[0].items()}
