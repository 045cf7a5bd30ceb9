"""Seats: which replica owns which chunk, as a short cyclic table.

The i-th chunk of a stage (counted from the tensor's number) belongs to replica ``seats[i % len(seats)]``. The default
is interleaved (``0, 1, … R-1``), so that when a replica leaves only its own chunks move, and in equal parts to all the
others (ElasWave's interleaved ZeRO).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm

MAX_SEATS = 5040  # above this the table is made anew; more seats only make the parts more equal


def default_seats(num_replicas: int) -> tuple[int, ...]:
    return tuple(range(num_replicas))


def reseat(seats: tuple[int, ...], kept: Mapping[int, int], num_replicas: int) -> tuple[int, ...]:
    """The table for `num_replicas` new replicas that moves the fewest chunks.

    Args:
        seats: the old table, of old replica indices.
        kept: old replica index -> new replica index, for the replicas that stay.
        num_replicas: how many replicas the stage has from now on.

    Returns:
        A table in which every new replica owns the same number of seats.
    """
    length = lcm(len(seats), num_replicas)
    if length > MAX_SEATS or not kept:
        return default_seats(num_replicas)
    quota, count = length // num_replicas, [0] * num_replicas
    table: list[int | None] = []
    for i in range(length):
        owner = kept.get(seats[i % len(seats)])
        if owner is not None and count[owner] < quota:
            count[owner] += 1
            table.append(owner)
        else:
            table.append(None)
    result = []
    for owner in table:
        if owner is None:
            owner = min(range(num_replicas), key=lambda r: count[r])
            count[owner] += 1
        result.append(owner)
    return _shortest_period(tuple(result))


def _shortest_period(table: tuple[int, ...]) -> tuple[int, ...]:
    for n in range(1, len(table)):
        if len(table) % n == 0 and table[:n] * (len(table) // n) == table:
            return table[:n]
    return table
