"""Who is slow: each rank's own computing against its past and its equals, each link's delay against its past.

What makes all ranks slow at once (a busy machine) is nobody's fault: the median of all ratios is taken out first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from trainsys.comm.stamps import StepTimes
from trainsys.elastic.analyst.delays import Delay, Pair, common_place
from trainsys.elastic.analyst.past import Past
from trainsys.elastic.analyst.verdict import SLOW_LINK, SLOW_NODE, SLOW_RANK, Finding

_MESSAGES = 8  # all of them late, until a link is called slow
_LEAST_S = 1e-5  # of a message: less is the error of two clocks, and may come out as 0
_WORDS = {"F": "forward", "B": "backward", "I": "backward", "W": "backward of the weights", "R": "recomputation"}


@dataclass(frozen=True)
class Place:
    """Where a rank works.

    Attributes:
        work: of one microbatch there, in any unit; ranks with equal work are equals.
    """

    stage: int
    node: int
    work: float


@dataclass
class SlowRanks:
    """Computing, in seconds of one microbatch per unit of work, so that a past outlives a change of layout.

    Args:
        factor, steps: as `Past`.
    """

    factor: float
    steps: int
    past: dict[int, Past] = field(default_factory=dict)

    def step(self, step: int, times: Mapping[int, StepTimes], places: Mapping[int, Place]) -> list[Finding]:
        """What this step tells."""
        spent = {rank: microbatch_s(t) for rank, t in times.items() if rank in places and t.compute}
        per_work = {rank: sum(kinds.values()) / places[rank].work for rank, kinds in spent.items()}
        usual = {rank: self._usual(rank, places) for rank in per_work}
        pasts = {rank: self.past.setdefault(rank, Past(self.factor, self.steps, 0.0)) for rank in per_work}
        ratios = [pasts[rank].compare(s, usual[rank]) for rank, s in per_work.items()]
        common = max(1.0, median(ratios)) if len(ratios) > 2 else 1.0
        found = []
        for rank, seconds in per_work.items():
            past, least_s = pasts[rank], 3e-4 / places[rank].work
            past.least_s = least_s
            change = past.take(step, seconds, usual[rank], common)
            if change is not None:
                since = past.since if past.since is not None else step
                evidence = self._evidence(rank, spent, places, past.ratio)
                found.append(Finding(SLOW_RANK, (rank,), past.ratio, since, evidence, over=not change))
        return found

    def _usual(self, rank: int, places: Mapping[int, Place]) -> float | None:
        """Its own past's, or that of its equals where it has none, or has never been as fast as they."""
        own = self.past[rank].usual_s if rank in self.past else None
        equals = [
            usual
            for other, place in places.items()
            if other != rank and place.stage == places[rank].stage and other in self.past
            if (usual := self.past[other].usual_s) is not None
        ]
        if equals and (own is None or own > self.factor * median(equals)):
            return median(equals)
        return own

    def _evidence(
        self, rank: int, spent: Mapping[int, Mapping[str, float]], places: Mapping[int, Place], ratio: float
    ) -> str:
        kind = max(spent[rank], key=lambda k: spent[rank][k])
        word = _WORDS.get(kind, kind)
        equals = [other for other in spent if other != rank and places[other].stage == places[rank].stage]
        if equals and kind in spent[equals[0]]:
            times = spent[rank][kind] / max(spent[equals[0]][kind], 1e-9)
            if times >= self.factor:  # else both are slow, and it is its own past that tells
                return f"{word} takes {times:.1f} times that of rank {equals[0]}"
        return f"computing takes {ratio:.1f} times as long as before"


@dataclass
class SlowLinks:
    """Delays. Cells are new after a change of layout.

    Args:
        factor, steps: as `Past`.
        share: of a step; less delay than that matters to nobody.
    """

    factor: float
    steps: int
    share: float = 0.05
    past: dict[Pair, Past] = field(default_factory=dict)
    node: int | None = None  # said to be slow
    named: set[Pair] = field(default_factory=set)  # links said to be slow, each for itself

    def step(self, step: int, cells: Mapping[Pair, Delay], step_s: float, node_of: Mapping[int, int]) -> list[Finding]:
        """What this step tells: of a slow node one thing, not one of each of its links."""
        pasts = {pair: self.past.setdefault(pair, Past(self.factor, self.steps, 0.0)) for pair in cells}
        excess = [d.typical_s - (pasts[p].usual_s or d.typical_s) for p, d in cells.items() if d.known]
        common_s = max(0.0, median(excess)) if len(excess) > 3 else 0.0
        found = []
        for pair, cell in cells.items():
            pasts[pair].least_s = self.share * step_s
            if not cell.known and cell.typical_s > (pasts[pair].usual_s or cell.typical_s):
                continue  # perhaps it was there long before
            value_s = max(_LEAST_S, cell.typical_s - common_s)
            change = pasts[pair].take(step, value_s, steps=-(-_MESSAGES // cell.messages))
            if change is not None:
                since = pasts[pair].since
                found.append(
                    Finding(
                        SLOW_LINK, pair, max(pasts[pair].ratio, 1e-9), step if since is None else since,
                        self._evidence(cell, pasts[pair]), over=not change,
                    )
                )  # fmt: skip
        return self._of_node(step, found, node_of)

    def _of_node(self, step: int, found: list[Finding], node_of: Mapping[int, int]) -> list[Finding]:
        """What is said: a node where all its links are slow, and those that are no node's one by one."""
        slow = [pair for pair, past in self.past.items() if past.open]
        was, self.node = self.node, common_place(slow, self.past.keys(), node_of) if slow else None
        said = []
        if was is not None and self.node != was:
            said.append(Finding(SLOW_NODE, (was,), 1.0, step, "", over=True))
        if self.node is not None and self.node != was:
            factor = median(self.past[pair].ratio for pair in slow)
            evidence = f"messages on {len(slow)} of its links take {factor:.1f} times as long as before"
            said.append(Finding(SLOW_NODE, (self.node,), factor, step, evidence))
        fresh = {finding.place: finding for finding in found}
        for pair in slow:
            if pair not in self.named and self.node not in {node_of.get(rank, -1) for rank in pair}:
                said.append(fresh.get(pair) or self._again(pair, step))
                self.named.add(pair)
        for pair in sorted(self.named - set(slow)):
            said.append(fresh.get(pair) or Finding(SLOW_LINK, pair, 1.0, step, "", over=True))
        self.named &= set(slow)
        return said

    def _again(self, pair: Pair, step: int) -> Finding:
        """A link that was slow with its node's others, and now is by itself."""
        past = self.past[pair]
        evidence = f"messages take {past.ratio:.1f} times as long as before,"
        return Finding(SLOW_LINK, pair, past.ratio, step if past.since is None else past.since, evidence)

    def _evidence(self, cell: Delay, past: Past) -> str:
        usual_ms = 1e3 * (past.usual_s or 0.0)
        kib = cell.bytes / cell.messages / 1024
        return f"messages of {kib:.3g} KiB take {1e3 * cell.typical_s:.3g} ms, before {usual_ms:.3g} ms,"


def microbatch_s(times: StepTimes) -> dict[str, float]:
    """Seconds of one microbatch by kind of action: the least of the step's, to which a busy machine has not added."""
    return {kind: min(seconds) for kind, seconds in times.compute.items() if seconds}
