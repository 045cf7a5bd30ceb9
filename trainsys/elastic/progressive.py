"""A transition in bounded memory: portion by portion, each verified by all and then given up by its source.

    for each portion:  move it  ─▶  hash it at both ends, add up over all ranks  ─▶  release its source

Who knows a verdict knows that everybody has the portion: what stands under the destination counts as held there from
then on, and everything else where it was before. So after a failure nothing is rolled back. The manager asks the
survivors how many portions they released, the largest answer counts (they differ by one at most), and the next
transition reads each portion from where it is held, be it the source, the destination that failed, or one before that.
Every element stands under one of them with all of its holders and mirrors, the portion under way under two.

Bytes are counted by pages: at most the larger of source and destination, plus the staging budget. A quarter of that is
for the portion that stands twice, a quarter for staging buffers. The rest is for roundings: pages at the borders
between what was released and what was not, about 24 KiB per tensor, and a rank's owning a chunk more of a portion than
others do. A budget too small for these is exceeded by them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from trainsys.comm.group import CommError, Group
from trainsys.elastic.hashing import MASK, Hashes, hash_run, signed
from trainsys.elastic.holding import Holding, Span
from trainsys.elastic.staging import Staging
from trainsys.elastic.transit import Step, Transit, most_staged, steps_of
from trainsys.parallel.state import FlatState
from trainsys.space.layout import Layout
from trainsys.space.portions import Held, Portions
from trainsys.space.tensor import SLOTS, Space
from trainsys.space.transition import Transition, transition

_STAGING_SHARE = 0.25  # of the budget: two buffers, one per direction
_ODD = 0xD6E8FEB86659FD93  # makes a tensor's number part of its hash


class PortionError(CommError):
    """A portion's evidence does not add up; nobody released its source."""


class Passage:
    """One rank's way from where portions are `held` to `dst`.

    Args:
        held: where which portions stand.
        alive: ranks that hold a part of them.
        holdings: this rank's, by the epoch in which each was staged; the destination joins them.
        epoch: of the destination.
        portions: the cut, the same until a layout commits.
        group: contains all participants; None where there is one.
        stale: this rank's state has not seen the steps that it should have: fails the first portion.

    Attributes:
        new: the state under `dst`.
        before: (tensor, slot) -> hash of what this rank vouched for in the sources, for the census.
        received: bytes from others.
        released: portions whose source has been given up.
    """

    def __init__(
        self, space: Space, held: Sequence[Held], dst: Layout, rank: int, alive: Collection[int],
        nodes: Mapping[int, int], holdings: dict[int, Holding], epoch: int, portions: Portions, group: Group | None,
        dtype: torch.dtype, device: torch.device, staging: Staging, stale: bool = False,
    ) -> None:  # fmt: skip
        self.space, self.held, self.dst, self.group, self.staging = space, held, dst, group, staging
        self.portions, self.holdings, self.epoch, self._stale = portions, holdings, epoch, stale
        self.before: dict[tuple[int, str], int] = {}
        self.received = self.released = 0
        self._bytes = len(SLOTS) * dtype.itemsize  # of an element
        living = frozenset(alive)
        for gone in holdings.keys() - {h.epoch for h in held}:
            del holdings[gone]
        self._align(rank, living)
        storage = dst.storage(space, rank) if rank in dst else ()
        self.new = FlatState(storage, dtype, device, fill=False, paged=True)
        self._into = Holding(self.new, False)
        self._into.cut(space, dst, rank, dst.ranks, portions)
        if rank in dst:
            holdings[epoch] = self._into
        staging.count(sum(h.resident_bytes for h in holdings.values()))
        self._shares = self._plan(rank, living, nodes)
        part = int(staging.budget * _STAGING_SHARE) // 2
        self._steps: list[list[Step]] = [steps_of(share, group, part, dtype) for share in self._shares]
        staging.prepare(
            most_staged(s for steps in self._steps for s in steps), torch.empty(0, dtype=dtype), _STAGING_SHARE
        )

    def _align(self, rank: int, living: frozenset[int]) -> None:
        """Know which portion lies where, and give up what others have given up, or what never counted."""
        for h in self.held:
            if h.epoch in self.holdings:
                holding = self.holdings[h.epoch]
                holding.cut(self.space, h.layout, rank, living.intersection(h.layout.ranks), self.portions)
                for portion in sorted(holding.alive.difference(range(h.first, h.stop))):
                    holding.release(portion)

    def _plan(self, rank: int, living: frozenset[int], nodes: Mapping[int, int]) -> list[Transition]:
        """This rank's share of each portion, from where that is held."""
        shares: list[Transition] = []
        for h in self.held:
            there = living.intersection(h.layout.ranks)
            share = transition(self.space, h.layout, self.dst, rank, there, lambda r: nodes.get(r, -1))
            shares += self.portions.of_transition(share)[h.first : h.stop]
        assert len(shares) == self.portions.count
        return shares

    def run(self, at: Callable[[str], None] = lambda phase: None) -> FlatState:
        """Bring over every portion.

        Args:
            at: called with "transfer" when a portion begins.

        Raises:
            CommError: a peer failed, or (`PortionError`) a portion is not what it was; what was released stands in the
                destination, the rest in its source.
        """
        for h in self.held:
            for portion in range(h.first, h.stop):
                at("transfer")
                self._bring(portion, h.layout, self.holdings.get(h.epoch))
                self.released = portion + 1
        return self.new

    def _bring(self, portion: int, layout: Layout, source: Holding | None) -> None:
        """Move a portion, verify it, release its source."""
        self._counted(self._into, self._into.add, portion)
        share = self._shares[portion]
        Transit(source.state if source else None, self.new, self.group, self.staging).run(
            self._steps[portion], share.local
        )
        self._verify(portion, layout, source)
        self.received += self._bytes * sum(m.box.numel for m in share.receives)
        if source is not None:
            self._counted(source, source.release, portion)

    def _counted(self, holding: Holding, change: Callable[[int], None], portion: int) -> None:
        was = holding.resident_bytes
        change(portion)
        self.staging.count(holding.resident_bytes - was)

    def _verify(self, portion: int, layout: Layout, source: Holding | None) -> None:
        """Sources and owners must add up to the same per slot, and copies to their owners: one sum over all ranks."""
        moved, copied = [0] * len(SLOTS), [0] * len(SLOTS)
        for span in source.spans[portion] if source is not None else ():
            if span.others >= 0:
                assert source is not None
                hashes = self._hash(source.state, span, layout)
                _add(moved, span.tensor, hashes, 1)
                for slot, value in zip(SLOTS, hashes, strict=True):
                    key = span.tensor, slot
                    self.before[key] = (self.before.get(key, 0) + value) & MASK
        for span in self._into.spans[portion]:
            hashes = self._hash(self.new, span, self.dst)
            _add(copied, span.tensor, hashes, -span.others)
            if span.others >= 0:
                _add(moved, span.tensor, hashes, -1)
        total = torch.tensor([signed(n) for n in (*moved, *copied, int(self._stale))])
        if self.group is not None:
            self.group.all_reduce(total)
        *sums, stale = total.tolist()
        wrong = [f"{slot} changed in transit" for slot, n in zip(SLOTS, sums, strict=False) if n]
        wrong += [f"copies of {slot} differ" for slot, n in zip(SLOTS, sums[len(SLOTS) :], strict=True) if n]
        wrong += [f"{stale} ranks have seen other steps"] if stale else []
        if wrong:
            raise PortionError(f"portion {portion} of {self.portions.count}: {', '.join(wrong)}")

    def _hash(self, state: FlatState, span: Span, layout: Layout) -> Hashes:
        tensor = self.space.tensors[span.tensor]
        return hash_run(state, span.offset, tensor, layout.tp, span.shard, span.start, span.stop)


def _add(totals: list[int], tensor: int, hashes: Hashes, times: int) -> None:
    for i, value in enumerate(hashes):
        totals[i] = (totals[i] + value * times * (tensor * _ODD * 2 + 1)) & MASK
