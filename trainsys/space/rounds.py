"""Transfer rounds: the order in which a transition's moves cross the wire, free of deadlock by construction.

In round k the i-th rank of the sorted ring sends to rank i+k and receives from rank i-k: at most one peer per
direction, and both ends of every pair meet in the same round. A round that would stage more than the budget is cut
into parts; the two ends of a pair cut alike because both see the same moves in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainsys.space.transition import Move, Transition

PART_BYTES = 4 << 20  # of all slots together: what one part of a round stages at most


@dataclass(frozen=True)
class Round:
    """One exchange: moves to `to` leave while moves from `source` arrive. Either may be empty."""

    to: int
    source: int
    sends: tuple[tuple[Move, ...], ...]  # parts, each within the staging budget
    receives: tuple[tuple[Move, ...], ...]


def rounds(part: Transition, ranks: Sequence[int], budget_elements: int) -> list[Round]:
    """Arrange one rank's transfers.

    Args:
        part: the rank's share.
        ranks: every rank that takes part, the same sequence on all of them.
        budget_elements: most elements staged per direction at a time (one larger move is staged alone).
    """
    ring = sorted(ranks)
    n, place = len(ring), {r: i for i, r in enumerate(ring)}
    at = place[part.rank]
    sends: dict[int, list[Move]] = {}  # by the round in which they leave
    receives: dict[int, list[Move]] = {}
    for move in part.sends:
        sends.setdefault((place[move.dst] - at) % n, []).append(move)
    for move in part.receives:
        receives.setdefault((at - place[move.src]) % n, []).append(move)
    return [
        Round(
            ring[(at + k) % n],
            ring[(at - k) % n],
            _parts(sends.get(k, ()), budget_elements),
            _parts(receives.get(k, ()), budget_elements),
        )
        for k in sorted(sends.keys() | receives.keys())
    ]


def _into(move: Move) -> tuple[int, tuple[int, ...]]:
    """Along the destination's storage, so that what lies together there also travels together."""
    return (move.dst_at.offset, move.box.start)


def _parts(moves: Sequence[Move], budget: int) -> tuple[tuple[Move, ...], ...]:
    parts: list[list[Move]] = []
    size = 0
    for move in sorted(moves, key=_into):
        numel = move.box.numel
        if not parts or size + numel > budget:
            parts.append([])
            size = 0
        parts[-1].append(move)
        size += numel
    return tuple(map(tuple, parts))


def verify_rounds(plan: dict[int, list[Round]]) -> None:
    """Check a whole plan before it starts: run it and see that every part sent is received and nobody waits for ever.

    Raises:
        AssertionError: naming the ranks, for a plan that this module would never make.
    """
    posted: dict[tuple[int, int], list[tuple[Move, ...]]] = {}
    expected: dict[tuple[int, int], list[tuple[Move, ...]]] = {}
    for rank, own in plan.items():
        assert len({r.to for r in own}) == len(own), f"rank {rank} sends to one peer in two rounds"
        for r in own:
            posted.setdefault((rank, r.to), []).extend(r.sends)
            expected.setdefault((r.source, rank), []).extend(r.receives)
    for pair in posted.keys() | expected.keys():
        assert posted.get(pair, []) == expected.get(pair, []), f"ranks {pair[0]} -> {pair[1]} disagree"
    at = dict.fromkeys(plan, 0)

    def finished(rank: int, peer: int, send: bool) -> bool:
        """Whether the peer has reached the round in which it answers `rank`."""
        for i, r in enumerate(plan.get(peer, [])):
            if (r.source if send else r.to) == rank:
                return at[peer] >= i
        return False

    while any(at[rank] < len(plan[rank]) for rank in plan):
        ready = [
            rank
            for rank in plan
            if at[rank] < len(plan[rank])
            and (not plan[rank][at[rank]].sends or finished(rank, plan[rank][at[rank]].to, True))
            and (not plan[rank][at[rank]].receives or finished(rank, plan[rank][at[rank]].source, False))
        ]
        assert ready, f"ranks {[r for r in plan if at[r] < len(plan[r])]} wait for each other"
        for rank in ready:
            at[rank] += 1
