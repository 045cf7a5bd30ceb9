"""What stands, and what is left of it when some are lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

from trainsys.config import ParallelConfig
from trainsys.space.layout import Layout

_SMALL = 16  # ranks


@dataclass(frozen=True)
class Situation:
    """What stands.

    Attributes:
        nodes: member -> node, of all members.
        leaving: members whose place will be taken away.
        world_size: ranks that work when all is well; with ``elastic.spares`` others stand by.
    """

    layout: Layout
    parallel: ParallelConfig
    nodes: Mapping[int, int]
    leaving: frozenset[int]
    world_size: int

    @property
    def small(self) -> bool:
        """Whether there is time to think of more losses than one."""
        return len(self.layout.ranks) <= _SMALL

    def staying(self, lost: Collection[int], spares: int) -> dict[int, int]:
        """Those who do not leave and are not lost. With spares, who works goes on working; of the others as many as are
        missing."""
        nodes = {rank: node for rank, node in self.nodes.items() if rank not in self.leaving and rank not in lost}
        if not spares:
            return nodes
        wanted, works = max(self.world_size, len(nodes) - spares), set(self.layout.ranks)
        order = sorted(nodes, key=lambda rank: (rank not in works, rank))
        return {rank: nodes[rank] for rank in sorted(order[:wanted])}

    def losses(self, pairs: bool) -> list[Sequence[int]]:
        """Any one rank, any one node, and if asked for any two ranks.

        Of a large layout one each of those whose loss looks alike: of a regular one with thousands of ranks, a few per
        stage. (With spares the one that moves in may be in another node, which is not looked at.)
        """
        alike: dict[object, Sequence[int]] = {}
        for lost in self._any_lost(pairs):
            alike.setdefault(tuple(lost) if self.small else self._looks(lost), lost)
        return list(alike.values())

    def without(self, lost: Collection[int]) -> Situation:
        """When they are gone, and nobody has done anything about it yet."""
        return replace(self, nodes={rank: node for rank, node in self.nodes.items() if rank not in lost})

    def _any_lost(self, pairs: bool) -> Iterator[Sequence[int]]:
        ranks, on = self.layout.ranks, dict[int, list[int]]()
        for rank, node in self.nodes.items():
            on.setdefault(node, []).append(rank)
        yield from ([rank] for rank in ranks)
        yield from (on[node] for node in sorted(on))
        if pairs:
            yield from combinations(ranks, 2)

    def _looks(self, lost: Sequence[int]) -> object:
        """What a loss hits: of how many teams of which stages how many ranks, and of how large nodes. The highest node
        stands for itself: without it the cluster may be smaller."""
        teams = Counter(self.layout.where(rank)[:2] for rank in lost if rank in self.layout)
        nodes = Counter(self.nodes[rank] for rank in lost if rank in self.nodes)
        sizes, highest = self._sizes
        return (
            tuple(sorted((stage, ranks) for (stage, _), ranks in teams.items())),
            tuple(sorted((sizes[node], ranks, node == highest) for node, ranks in nodes.items())),
        )

    @cached_property
    def _sizes(self) -> tuple[Counter[int], int]:
        """Members of each node, and the highest node."""
        return Counter(self.nodes.values()), max(self.nodes.values())
