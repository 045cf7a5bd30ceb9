"""What a change of layout costs: bytes and seconds on the declared links, from the very rounds that would run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainsys.comm.topology import Topology
from trainsys.space.layout import Layout
from trainsys.space.rounds import PART_BYTES, Round, rounds
from trainsys.space.tensor import SLOTS, Space
from trainsys.space.transition import Move, transition


@dataclass(frozen=True)
class Switch:
    """Of the rank that takes longest among those looked at.

    Attributes:
        seconds: its rounds on the wire, one after the other; planning, verifying and new process groups not included.
        received_gib: master copies and moments that the rank with most of them receives.
    """

    seconds: float
    received_gib: float


def switch(
    space: Space, src: Layout, dst: Layout, alive: Sequence[int], topology: Topology, itemsize: int, sample: int = 16
) -> Switch:
    """Cost of going from `src`, as far as alive, to `dst`.

    Args:
        itemsize: bytes of an element of the state.
        sample: ranks to plan for: those that serve for the dead, who have most to send, and others at random, always
            the same.

    Raises:
        LostError: a coordinate has no living holder.
    """
    element_bytes, participants = itemsize * len(SLOTS), tuple(sorted({*alive, *dst.ranks}))
    seconds = received = 0.0
    for rank in sampled(src, alive, participants, sample):
        share = transition(space, src, dst, rank, alive, topology.node_of)
        order = rounds(share, participants, PART_BYTES // element_bytes)
        seconds = max(seconds, rounds_s(rank, order, topology.transfer_s, element_bytes))
        received = max(received, element_bytes * sum(m.box.numel for m in share.receives) / 2**30)
    return Switch(seconds, received)


def sampled(src: Layout, alive: Sequence[int], participants: Sequence[int], sample: int) -> list[int]:
    """The mirrors of the dead and others at random: at most `sample` ranks."""
    dead = set(src.ranks).difference(alive)
    serving = sorted({peer for rank, peer in src.mirrors if rank in dead}.difference(dead))[: sample // 2]
    others = [r for r in participants if r not in set(serving)]
    return serving + random.Random(0).sample(others, min(sample - len(serving), len(others)))


def rounds_s(
    rank: int, order: Sequence[Round], transfer_s: Callable[[int, int, float], float], element_bytes: int
) -> float:
    """Seconds on the wire of one rank: its rounds one after the other, both directions of one at once."""

    def direction_s(a: int, b: int, parts: Sequence[Sequence[Move]]) -> float:
        return sum(transfer_s(a, b, element_bytes * sum(m.box.numel for m in part)) for part in parts)

    return sum(
        max(direction_s(rank, step.to, step.sends), direction_s(step.source, rank, step.receives)) for step in order
    )
