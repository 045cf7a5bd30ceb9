"""Heads shared by u neighbours, a ring of the rest: USP (Fang and Zhao 2024, arXiv:2405.07719)."""

from __future__ import annotations

from trainsys.comm.datapath_home import homeward
from trainsys.sequence.journey import Journey
from trainsys.sequence.place import Place, Plan, datapath, united


def plan(place: Place) -> Plan:
    """u is the most that heads and hosts allow: neighbours on one host, a divisor of the teams.

    Raises:
        ValueError: where no u between 1 and the number of teams does.
    """
    per_host = min(place.wires.hosts.count(host) for host in set(place.wires.hosts))
    most = min(place.heads, per_host if per_host < place.size else place.size // 2)
    fitting = [u for u in range(2, most + 1) if place.size % u == 0]
    if not fitting:
        raise ValueError(
            f"parallel.cp_method=hybrid shares {place.heads} heads among a part of parallel.cp={place.size} teams that "
            "divides them; set parallel.cp_method=ring, ulysses or auto"
        )
    return shared(place, fitting[-1])


def shared(place: Place, u: int) -> Plan:
    """u neighbours share heads; those with equal numbers in all groups of u make a ring."""
    layout = tuple(united(place.layout[first : first + u]) for first in range(0, place.size, u))
    wires = place.wires.among(range(0, place.size, u))
    path = datapath("ring", wires, 0)
    journey = Journey(layout, place.mask, path, homeward(path))
    return Plan(journey, journey, shared=u)
