"""Which ranks exchange what, and the link that holds them up: of one group of each kind, not of every group.

Where links are even (all nodes and all links of a kind are equal), ranks that lie alike relative to the nodes are
alike: a group is known by where it starts within a node and by its strides, and a long one by two or three periods of
its way through the nodes. Elsewhere every group of every tp shard is looked at, rank by rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import Literal

from trainsys.comm.topology import Link, Topology
from trainsys.planner.stages import Stages

Level = tuple[int, int]  # (stride, count)
Way = Literal["direct", "ring", "one ring"]
"""How a group exchanges: everyone with everyone at once; a ring that uses all adapters of a node (NCCL), or one alone,
in which each rank sends to the one before it (gloo)."""


def link_over(topology: Topology, ranks: Sequence[int], way: Way) -> Link | None:
    """What holds up an exchange of `ranks`; None for one rank."""
    if way == "direct":
        return topology.direct(ranks)
    return topology.ring(ranks) if way == "ring" else topology.ring(ranks[::-1], abreast=False)


@lru_cache(maxsize=8192)
def team_links(stages: Stages, topology: Topology, stage: int | None = None) -> tuple[Link, ...]:
    """The slowest links of the teams of `stage`, or of all of them; one for teams that lie alike."""
    if not _alike(stages, topology):
        which = range(stages.num_teams) if stage is None else (rank // stages.tp for rank in stages.data_group(stage))
        return _distinct(topology.direct(stages.ranks_of(team)) for team in which)
    levels = [(stages.tp, stages.cp), _replicas(stages)] if stage is not None else [(stages.tp, stages.num_teams)]
    return _links(topology, _first(stages, stage or 0), levels, ((1, stages.tp),))


@lru_cache(maxsize=8192)
def sequence_links(stages: Stages, topology: Topology, stage: int) -> tuple[Link, ...]:
    """The slowest links of the groups that share a sequence."""
    if not _alike(stages, topology):
        return _each(topology, stages.tp, stages.sequence_groups(stage))
    starts = [*_shards(stages, topology), _replicas(stages)]
    return _links(topology, _first(stages, stage), starts, ((stages.tp, stages.cp),))


@lru_cache(maxsize=8192)
def exchange_links(stages: Stages, topology: Topology, stage: int) -> tuple[Link, ...]:
    """The slowest links of the groups that send each other tokens."""
    ep, cp = stages.ep, stages.cp
    if not _alike(stages, topology) or (cp % ep and ep % cp):
        return _each(topology, stages.tp, stages.exchange_groups(stage))
    stride, dp = _replicas(stages)
    first, starts = _first(stages, stage), _shards(stages, topology)
    if cp % ep == 0:
        starts += [(stages.tp * ep, cp // ep), (stride, dp)]
        return _links(topology, first, starts, ((stages.tp, ep),))
    many = ep // cp
    return _links(topology, first, [*starts, (stride * many, dp // many)], ((stages.tp, cp), (stride, many)))


@lru_cache(maxsize=8192)
def data_links(stages: Stages, topology: Topology, stage: int, way: Way = "direct") -> tuple[Link, ...]:
    """The slowest links of those that average the gradients of `stage`: every tp shard is a group."""
    if not _alike(stages, topology):
        return _each(topology, stages.tp, [stages.data_group(stage)], way)
    levels = ((stages.tp, stages.cp), _replicas(stages))
    return _links(topology, _first(stages, stage), _shards(stages, topology), levels, way)


@lru_cache(maxsize=8192)
def expert_links(stages: Stages, topology: Topology, stage: int, way: Way = "direct") -> tuple[Link, ...]:
    """The slowest links of those that average the gradients of the first class of experts."""
    ep, cp = stages.ep, stages.cp
    if not _alike(stages, topology) or (cp % ep and ep % cp):
        return _each(topology, stages.tp, [stages.expert_group(stage)], way)
    stride, dp = _replicas(stages)
    levels: tuple[Level, ...] = ((stages.tp * ep, cp // ep), (stride, dp))
    if cp % ep:
        levels = ((stride * (ep // cp), dp * cp // ep),)
    return _links(topology, _first(stages, stage), _shards(stages, topology), levels, way)


@lru_cache(maxsize=8192)
def ends_links(stages: Stages, topology: Topology, way: Way = "direct") -> tuple[Link, ...]:
    """The slowest links of those that hold a tied embedding: first and last stage together."""
    if not _alike(stages, topology):
        ends = (*stages.data_group(0), *stages.data_group(stages.count - 1))
        return _each(topology, stages.tp, [ends], way)
    levels = ((stages.tp, stages.cp), (_first(stages, stages.count - 1), 2), _replicas(stages))
    return _links(topology, 0, _shards(stages, topology), levels, way)


@lru_cache(maxsize=32768)
def hop_links(stages: Stages, topology: Topology, stage: int, after: int) -> tuple[Link, ...]:
    """The links between the teams of `stage` and their counterparts of stage `after`, of equally many replicas."""
    if not _alike(stages, topology):
        teams = ((stages.team(stage, r), stages.team(after, r)) for r in range(stages.replicas[stage]))
        pairs = (pair for a, b in teams for pair in zip(stages.ranks_of(a), stages.ranks_of(b), strict=True))
        return _distinct(topology.link(a, b) for a, b in pairs)
    first, apart = _first(stages, stage), _first(stages, after) - _first(stages, stage)
    node = topology.ranks_per_node
    inside = {0 <= start + apart < node for start in _offsets(topology, first, [_replicas(stages), (1, stages.tp)])}
    return _distinct(topology.intra_node if near else topology.inter_node for near in inside)


@lru_cache(maxsize=64)
def whole_link(topology: Topology) -> Link | None:
    """The slowest link of all."""
    last = topology.num_ranks - 1
    return topology.slowest((0, min(1, last), last) if topology.even_links else range(topology.num_ranks))


def _alike(stages: Stages, topology: Topology) -> bool:
    """Whether equal groups of `stages` may be taken for one."""
    return topology.even_links and stages.even


def _first(stages: Stages, stage: int) -> int:
    """The first rank of `stage` in the first replica of an even layout."""
    return stage * stages.cp * stages.tp


def _replicas(stages: Stages) -> Level:
    return stages.cp * stages.tp * stages.count, stages.replicas[0]


def _shards(stages: Stages, topology: Topology) -> list[Level]:
    """Where the groups of all tp shards begin; of one where teams do not lie across the ends of nodes."""
    node = topology.ranks_per_node
    return [] if node % stages.tp == 0 or stages.tp % node == 0 else [(1, stages.tp)]


def _each(topology: Topology, tp: int, groups: list[tuple[int, ...]], way: Way = "direct") -> tuple[Link, ...]:
    """The distinct slowest links of `groups` of the first tp shard and of the others, next to them."""
    shifted = (tuple(rank + shard for rank in group) for group in groups for shard in range(tp))
    return _distinct(link_over(topology, ranks, way) for ranks in shifted)


def _distinct(found: Iterable[Link | None]) -> tuple[Link, ...]:
    return tuple(dict.fromkeys(link for link in found if link is not None))


def _offsets(topology: Topology, first: int, levels: list[Level]) -> set[int]:
    """Where in a node the ranks first + multiples of all strides lie."""
    node, found = topology.ranks_per_node, {first % topology.ranks_per_node}
    for stride, count in levels:
        steps = range(min(count, node // gcd(stride, node)))
        found = {(start + stride * step) % node for start in found for step in steps}
    return found


def _links(
    topology: Topology, first: int, starts: list[Level], levels: tuple[Level, ...], way: Way = "direct"
) -> tuple[Link, ...]:
    """The distinct slowest links of groups of `levels`, one at each of `starts`."""
    return _distinct(_regular_link(topology, start, levels, way) for start in _offsets(topology, first, starts))


@lru_cache(maxsize=65536)
def _regular_link(topology: Topology, start: int, levels: tuple[Level, ...], way: Way) -> Link | None:
    """What holds up an exchange of the ranks `start` + multiples of all strides."""
    spread = _spread(topology.ranks_per_node, start, levels)
    return topology.direct_over(*spread) if way == "direct" else topology.ring_over(*spread, abreast=way == "ring")


@lru_cache(maxsize=65536)
def _spread(node: int, start: int, levels: tuple[Level, ...]) -> tuple[int, int, int]:
    """How many ranks `start` + multiples of all strides are, and how many in the nodes that hold most and fewest."""
    per_node = Counter(rank // node for rank in _members(start, _short(levels, node))).values()
    return prod(count for _, count in levels), max(per_node), min(per_node)


def _members(start: int, levels: tuple[Level, ...]) -> Iterator[int]:
    for steps in product(*(range(count) for _, count in reversed(levels))):
        yield start + sum(step * stride for step, (stride, _) in zip(steps, reversed(levels), strict=True))


def _short(levels: tuple[Level, ...], node: int) -> tuple[Level, ...]:
    """The same way through nodes of `node` ranks in fewer ranks: two periods and what is over of the widest level.

    A stride that continues the level before it is the same level, longer. Narrower levels stay whole: where they end
    they may share a node with the next step of a wider one.
    """
    merged: list[Level] = []
    for stride, count in levels:
        if count == 1:
            continue
        if merged and stride == merged[-1][0] * merged[-1][1]:
            stride, count = merged[-1][0], merged[-1][1] * count
            merged.pop()
        merged.append((stride, count))
    if merged:
        stride, count = merged[-1]
        period = node // gcd(stride, node)
        merged[-1] = (stride, count if count < 3 * period else 2 * period + count % period)
    return tuple(merged)
