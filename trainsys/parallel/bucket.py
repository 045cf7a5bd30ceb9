"""Buckets: gradients of all tensors that the same teams hold, summed over microbatches in one fixed tree.

A bucket is a flat vector in which the pieces of each owner lie together, so that what goes to one owner is one slice.
`fast` keeps one running sum instead of tree nodes and all-reduces it: less memory, but the bits then depend on the
layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainsys.comm.exchange import all_gather_regions
from trainsys.comm.group import Group
from trainsys.comm.tree import Node, Tree, TreeSum
from trainsys.parallel.reduce_scatter import TreeReduceScatter
from trainsys.space.layout import Layout, Piece
from trainsys.space.tensor import Space


@dataclass(frozen=True)
class BucketSpec:
    """What a bucket holds and who takes part; the same on all of its ranks.

    Attributes:
        ranks: holders with this rank's tp index, in stage and replica order.
        pieces: in flat order: grouped by owner.
        regions: rank -> (start, stop) of its pieces in the flat vector.
        tree: shape of the sum; per use (two for a tied embedding) a part for each cp index.
        leaves: rank -> leaves that it contributes; of an expert, those of the microbatches of its whole ep group.
        uses: part of the sum -> blocks whose backward makes it.
        experts: whether its ranks hold one class of experts, and add gradients for the others of their ep group too.
        cp: teams that share a sequence, each of which adds a leaf of its own for a microbatch.
    """

    ranks: tuple[int, ...]
    pieces: tuple[Piece, ...]
    regions: Mapping[int, tuple[int, int]]
    tree: Tree
    leaves: Mapping[int, tuple[Node, ...]]
    uses: tuple[tuple[int, ...], ...]
    experts: bool = False
    cp: int = 1

    def leaf(self, microbatch: int, use: int, cp_index: int) -> Node:
        """Where a gradient enters the tree: that of a part of the sequence, from one of the tensor's uses."""
        return self.tree.leaf(microbatch, use * self.cp + cp_index)

    @cached_property
    def numel(self) -> int:
        return sum(p.numel for p in self.pieces)

    @cached_property
    def tensors(self) -> set[int]:
        """Ordinals of the bucket's tensors."""
        return {p.tensor for p in self.pieces}

    @cached_property
    def number(self) -> int:
        """Tells it from every other bucket, the same on all of its ranks: the first ordinal, below 2^16."""
        number = min(self.tensors)
        assert number < 1 << 16, "message tags have 16 bits for it"
        return number

    @cached_property
    def blocks(self) -> set[int]:
        """Blocks that compute with the bucket's tensors, on whatever stage."""
        return {block for part in self.uses for block in part}


def bucket_specs(
    space: Space, layout: Layout, rank: int, microbatches: Callable[[int, int], Sequence[int]], count: int
) -> list[BucketSpec]:
    """The buckets of one rank: one per set of teams, number of uses and run of layers; under ZeRO-3 one per block.

    Args:
        microbatches: (stage, replica) -> global microbatches routed there.
        count: microbatches of a step.
    """
    stage, _, shard = layout.where(rank)
    spans = layout.stages[stage].intervals
    grouped: dict[tuple[tuple[tuple[int, ...], ...], int, int], list[int]] = {}
    for ordinal, tensor in enumerate(space.tensors):
        if layout.holds(tensor, rank):
            together = tensor.block if layout.zero == 3 else 0
            if layout.zero < 3 and not tensor.uses:
                together = next(run for run, (first, stop) in enumerate(spans) if first <= tensor.block < stop)
            grouped.setdefault((layout.teams_of(tensor), len(tensor.blocks), together), []).append(ordinal)
    specs = []
    for (teams, parts, _), ordinals in grouped.items():
        experts = layout.ep > 1 and space.tensors[ordinals[0]].expert is not None
        owners: dict[int, list[Piece]] = {team[shard]: [] for team in teams}
        for ordinal in ordinals:
            for piece, owner in layout.pieces(space.tensors[ordinal], ordinal, shard):
                owners[owner[shard]].append(piece)
        regions, at = {}, 0
        for owner_rank, pieces in owners.items():
            size = sum(p.numel for p in pieces)
            regions[owner_rank], at = (at, at + size), at + size
        tree = Tree(count, parts * layout.cp)
        leaves = {}
        for holder in owners:
            s, team, _ = layout.where(holder)
            used = [
                part
                for part, block in enumerate(space.tensors[ordinals[0]].blocks)
                if parts == 1 or layout.stages[s].has(block)
            ]
            whole_group = layout.stages[s].ep_group(team) if experts else (team,)
            places = [divmod(source, layout.cp) for source in whole_group]  # replica, cp index
            own = [(mb, cp_index) for replica, cp_index in places for mb in microbatches(s, replica)]
            leaves[holder] = tuple(tree.leaf(mb, part * layout.cp + c) for part in used for mb, c in own)
        blocks = [space.tensors[ordinal].blocks for ordinal in ordinals]
        uses = tuple(tuple(dict.fromkeys(of_part)) for of_part in zip(*blocks, strict=True))
        flat = tuple(p for ps in owners.values() for p in ps)
        specs.append(BucketSpec(tuple(owners), flat, regions, tree, leaves, uses, experts, layout.cp))
    return specs


class Bucket:
    """Accumulates, reduces and gathers one bucket on one rank.

    Args:
        group: the bucket's ranks, or None when this rank is the only one.
        dtype: of the sums, the masters' precision.
        fast: one running sum per rank instead of tree nodes.
    """

    def __init__(
        self, spec: BucketSpec, rank: int, group: Group | None, dtype: torch.dtype, device: torch.device, fast: bool
    ) -> None:
        self.spec, self.rank, self.group, self.fast = spec, rank, group, fast
        self._dtype, self._device = dtype, device
        self._sum: TreeSum[Tensor] = TreeSum(spec.tree, Tensor.add_)
        self._running: Tensor | None = None
        self._reduce_scatter: TreeReduceScatter | None = None  # made when first needed: its buffers cost memory
        self.region = slice(*spec.regions[rank])
        self.base = 0  # where in the flat vector that which `reduce` returns begins

    def owned_pieces(self) -> Iterator[Piece]:
        """The pieces of this rank's region, in its order."""
        at = 0
        for piece in self.spec.pieces:
            if self.region.start <= at < self.region.stop:
                yield piece
            at += piece.numel

    def begin(self) -> None:
        self._sum = TreeSum(self.spec.tree, Tensor.add_)
        self._running = None

    def push(self, leaf: Node, grads: Mapping[int, Tensor]) -> None:
        """Add one microbatch's gradient: tensor ordinal -> gradient in its local shape."""
        flat = {ordinal: g.reshape(-1) for ordinal, g in grads.items()}
        pieces = [flat[p.tensor][p.start : p.stop] for p in self.spec.pieces]

        def add_to(held: Tensor) -> Tensor:
            torch._foreach_add_(held.split([p.numel for p in self.spec.pieces]), pieces)
            return held

        if self.fast and self._running is not None:
            add_to(self._running)
        elif self.fast or not self._sum.absorb(leaf, add_to):  # a stream's own `add` holds nothing here
            self.add(leaf, torch.cat(pieces).to(self._dtype))

    def add(self, leaf: Node, value: Tensor) -> None:
        """Add one microbatch's gradient, already flat; `value` is consumed."""
        if self.fast:
            self._running = value if self._running is None else self._running.add_(value)
        else:
            self._sum.push(leaf, value)

    def reduce(self) -> Tensor:
        """Sum over all holders.

        Returns:
            Flat vector [numel] of which this rank's region (under `fast`: everything) is valid.
        """
        if self.fast:
            return self._reduce_fast()
        if self.group is None:
            return self._sum.total()
        if self._reduce_scatter is None:
            self._reduce_scatter = TreeReduceScatter(
                self.group, self.spec.tree, self.spec.leaves, self.spec.regions, self._dtype, self._device
            )
        return self._reduce_scatter(self._sum)

    def _reduce_fast(self) -> Tensor:
        assert self._running is not None
        if self.group is not None:
            self.group.all_reduce(self._running)
        return self._running

    def gather(self, flat: Tensor) -> None:
        """Fill the other owners' regions of `flat` in place."""
        if self.group is not None:
            all_gather_regions(self.group, flat, self.spec.regions)
