"""The delay matrix: how long messages took from rank to rank (C4, arXiv:2406.04594, §4.1, figure 8).

A message is on its way from when both ends have called until it is there. Who was late to call is no fault of the link.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from trainsys.comm.stamps import StepTimes

Pair = tuple[int, int]  # source, destination


@dataclass(frozen=True)
class Delay:
    """One cell.

    Attributes:
        typical_s: least of the messages of a step: a busy machine strikes some of them, a slow link all.
        messages, bytes: that arrived.
        known: it is that; else at most that.
    """

    typical_s: float
    messages: int
    bytes: int
    known: bool = True


def delay_matrix(times: Mapping[int, StepTimes], offset_s: Mapping[int, float]) -> dict[Pair, Delay]:
    """The cells of one step.

    Args:
        offset_s: rank -> seconds to add to its clock; ranks that are missing have the common one.
    """
    cells = {}
    for dst, own in times.items():
        for src, arrivals in own.got.items():
            if src not in times:
                continue
            begun = {(key, nth): at for key, nth, at in times[src].sent.get(dst, ())}
            ahead = offset_s.get(src, 0.0) - offset_s.get(dst, 0.0)
            ways = [
                (max(0.0, ended - max(posted, begun[key, nth] + ahead)), known)
                for key, nth, posted, ended, _, known in arrivals
                if (key, nth) in begun
            ]
            if ways:
                messages, num_bytes = own.counts.get(src, (len(ways), 0))
                cells[src, dst] = Delay(min(ways)[0], messages, num_bytes, min(ways)[1])
    return cells


def common_place(slow: Collection[Pair], known: Collection[Pair], node_of: Mapping[int, int]) -> int | None:
    """The node, a row and a column of the matrix, to which all slow cells belong and of whose cells most are slow.

    Args:
        known: all cells with a past.

    Returns:
        None: no node explains them better than links do.
    """
    for node in sorted({node_of.get(rank, -1) for pair in slow for rank in pair}):
        own = {p for p in known if (node_of.get(p[0]) == node) != (node_of.get(p[1]) == node)}
        peers = {rank for pair in own for rank in pair if node_of.get(rank) != node}
        if len(peers) > 1 and set(slow) <= own and 2 * len(own.intersection(slow)) > len(own) > 2:
            return node
    return None
