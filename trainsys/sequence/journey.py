"""What a method asks of the wires: which chunks there are, who wants them, and over which datapath they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from trainsys.comm.datapath import Datapath
from trainsys.comm.routed import Routed, Span, route, route_back
from trainsys.sequence.layouts import Layout, Positions, sliced
from trainsys.sequence.mask import Mask, sees


@dataclass(frozen=True, eq=False)
class Journey:
    """The travel of keys and values (or of queries) among the teams, the same on all of them.

    Attributes:
        layout: positions of each team.
        out: the datapath of what travels.
        home: the all-gather whose backwards results go home on.
        queries: whether queries travel, else keys.
        whole: what is wanted is asked of a team's runs, not of their slices, so that it does not depend on these.
    """

    layout: Layout
    mask: Mask
    out: Datapath
    home: Datapath
    queries: bool = False
    whole: bool = False

    @cached_property
    def chunks(self) -> list[Positions]:
        """The positions of every chunk."""
        return [part for positions in self.layout for part in sliced(positions, self.out.slices)]

    def wants(self, member: int, chunk: int) -> Span:
        """The runs of `chunk` that have to do with what `member` keeps."""
        if member == self.out.source(chunk):
            return (0, len(self.chunks[chunk]))
        runs = self.layout[self.out.source(chunk)] if self.whole else self.chunks[chunk]
        seen = [i for i, run in enumerate(runs) if self._meet(self.layout[member], run)]
        return (seen[0], seen[-1] + 1) if seen else (0, 0)

    def _meet(self, kept: Positions, travelling: range) -> bool:
        if self.queries:
            return any(sees((travelling,), run, self.mask) for run in kept)
        return sees(kept, travelling, self.mask)

    @cached_property
    def there(self) -> Routed:
        return route(self.out, self._runs, self.wants)

    @cached_property
    def back(self) -> Routed:
        return route_back(self.home, self._runs, self.wants)

    def gives(self, member: int) -> dict[int, Span]:
        """The chunks to which `member` has results to add, and the runs of them; its own ones among them."""
        spans = {chunk: self.wants(member, chunk) for chunk in range(len(self.chunks))}
        return {chunk: span for chunk, span in spans.items() if span[0] < span[1]}

    def _runs(self, chunk: int) -> int:
        return len(self.chunks[chunk])


Offsets = Callable[[int], Sequence[int]]
