"""Buckets: gradients of all tensors that the same teams hold, summed over microbatches in one fixed tree.

A bucket is a flat vector in which the pieces of each owner lie together, so that what goes to one owner is one slice.
Reducing is an all-to-all of tree nodes whose receiver adds in tree order; the volume equals a ring's when every
replica's microbatches form an aligned subtree. `fast` keeps one running sum instead and all-reduces it: less memory,
but the bits then depend on the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainsys.comm.exchange import all_gather_regions, exchange
from trainsys.comm.group import Group
from trainsys.comm.tree import Node, Tree, TreeSum
from trainsys.space.layout import Layout, Piece
from trainsys.space.tensor import Space

_PART = 1 << 18  # elements per message of the reduce-scatter
_MOST_PARTS = 1 << 13


@dataclass(frozen=True)
class BucketSpec:
    """What a bucket holds and who takes part; the same on all of its ranks.

    Attributes:
        ranks: holders with this rank's tp index, in stage and replica order.
        pieces: in flat order: grouped by owner.
        regions: rank -> (start, stop) of its pieces in the flat vector.
        tree: shape of the sum; two parts for a tied embedding.
        leaves: rank -> leaves that it contributes.
    """

    ranks: tuple[int, ...]
    pieces: tuple[Piece, ...]
    regions: Mapping[int, tuple[int, int]]
    tree: Tree
    leaves: Mapping[int, tuple[Node, ...]]

    @property
    def numel(self) -> int:
        return sum(p.numel for p in self.pieces)

    @property
    def tensors(self) -> set[int]:
        """Ordinals of the bucket's tensors."""
        return {p.tensor for p in self.pieces}


def bucket_specs(
    space: Space, layout: Layout, rank: int, microbatches: Callable[[int, int], Sequence[int]], count: int
) -> list[BucketSpec]:
    """The buckets of one rank: one per set of teams and number of uses.

    Args:
        microbatches: (stage, replica) -> global microbatches routed there.
        count: microbatches of a step.
    """
    stage, _, shard = layout.where(rank)
    grouped: dict[tuple[tuple[tuple[int, ...], ...], int], list[int]] = {}
    for ordinal, tensor in enumerate(space.tensors):
        if layout.stages[stage].holds(tensor):
            grouped.setdefault((layout.teams_of(tensor), len(tensor.blocks)), []).append(ordinal)
    specs = []
    for (teams, parts), ordinals in grouped.items():
        owners: dict[int, list[Piece]] = {team[shard]: [] for team in teams}
        for ordinal in ordinals:
            for piece, owner in layout.pieces(space.tensors[ordinal], ordinal, shard):
                owners[owner[shard]].append(piece)
        regions, at = {}, 0
        for owner_rank, pieces in owners.items():
            size = sum(p.numel for p in pieces)
            regions[owner_rank], at = (at, at + size), at + size
        tree = Tree(count, parts)
        leaves = {}
        for holder in owners:
            s, replica, _ = layout.where(holder)
            used = [
                part
                for part, block in enumerate(space.tensors[ordinals[0]].blocks)
                if parts == 1 or layout.stages[s].first <= block < layout.stages[s].stop
            ]
            leaves[holder] = tuple(tree.leaf(mb, part) for part in used for mb in microbatches(s, replica))
        specs.append(BucketSpec(tuple(owners), tuple(p for ps in owners.values() for p in ps), regions, tree, leaves))
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
        self._sum: TreeSum[Tensor] = TreeSum(spec.tree, _add)
        self._running: Tensor | None = None
        self._scratch: list[Tensor] = []
        self.region = slice(*spec.regions[rank])
        self.base = 0  # where in the flat vector that which `reduce` returns begins

    def begin(self) -> None:
        self._sum = TreeSum(self.spec.tree, _add)
        self._running = None

    def push(self, leaf: Node, grads: Mapping[int, Tensor]) -> None:
        """Add one microbatch's gradient: tensor ordinal -> gradient in its local shape."""
        flat = {ordinal: g.reshape(-1) for ordinal, g in grads.items()}
        self.add(leaf, torch.cat([flat[p.tensor][p.start : p.stop] for p in self.spec.pieces]).to(self._dtype))

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
        return reduce_scatter_tree(self.group, self.spec, self._sum, self.rank, self._scratch)

    def _reduce_fast(self) -> Tensor:
        assert self._running is not None
        if self.group is not None:
            self.group.all_reduce(self._running)
        return self._running

    def gather(self, flat: Tensor) -> None:
        """Fill the other owners' regions of `flat` in place."""
        if self.group is not None:
            all_gather_regions(self.group, flat, self.spec.regions)


def reduce_scatter_tree(
    group: Group, spec: BucketSpec, held: TreeSum[Tensor], rank: int, scratch: list[Tensor]
) -> Tensor:
    """Canonical reduce-scatter: every rank sends its tree nodes' slices to their owners, who add in tree order.

    Args:
        held: this rank's nodes [numel]; consumed.
        scratch: receive buffers, made at the first call and reused (fresh pages cost as much as the additions).

    Returns:
        A vector [numel] whose slice ``spec.regions[rank]`` is the sum over all ranks.
    """
    roots = {r: spec.tree.roots(spec.leaves[r]) for r in spec.ranks}
    start, stop = spec.regions[rank]
    at = group.ranks.index(rank)
    peers = [group.ranks[(at + k) % group.size] for k in range(1, group.size)]
    own = {node: held.nodes[node] for node in roots[rank]}
    like = next(iter(own.values()))
    cuts = _cuts(start, stop)
    place = like.untyped_storage().data_ptr()

    def add(left: Tensor, right: Tensor) -> Tensor:
        """Into the vector that is returned, where one of them lies there: a sum of two has the bits of either order."""
        return right.add_(left) if right.untyped_storage().data_ptr() == place else left.add_(right)

    totals: list[TreeSum[Tensor]] = [TreeSum(spec.tree, add) for _ in cuts]
    for (a, b), total in zip(cuts, totals, strict=True):
        for node, value in own.items():
            total.push(node, value[a:b])
    wanted = [(peer, node, part) for part in range(len(cuts)) for peer in reversed(peers) for node in roots[peer]]
    if not scratch:
        scratch.extend(
            torch.empty(b - a, dtype=like.dtype, device=like.device) for _, _, p in wanted for a, b in [cuts[p]]
        )
    inbox = [(*key, buffer) for key, buffer in zip(wanted, scratch, strict=True)]
    sends = [
        (peer, value[a:b], _tag(node, part))
        for peer in peers
        for part, (a, b) in enumerate(_cuts(*spec.regions[peer]))
        for node, value in own.items()
    ]
    exchange(
        group,
        sends,
        [(peer, buffer, _tag(node, part)) for peer, node, part, buffer in inbox],
        lambda i: totals[inbox[i][2]].push(inbox[i][1], inbox[i][3]),
    )
    for (a, b), total in zip(cuts, totals, strict=True):
        result = total.total()
        if result.data_ptr() != like[a:b].data_ptr():
            like[a:b] = result
    return like


def _cuts(start: int, stop: int) -> list[tuple[int, int]]:
    """A region in parts small enough to be added while they are still in the cache, as far as tags can number them."""
    part = max(_PART, -(-(stop - start) // _MOST_PARTS))
    return [(a, min(a + part, stop)) for a in range(start, stop, part)]


def _add(left: Tensor, right: Tensor) -> Tensor:
    return left.add_(right)


def _tag(node: Node, part: int) -> int:
    """Unique per (node, part) in 31 bits: 4 of level, 14 of index, the rest of part."""
    assert node[1] < 1 << 14
    assert part < _MOST_PARTS
    return (part << 18) | (node[1] << 4) | node[0]
