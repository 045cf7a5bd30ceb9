"""Ring attention (Liu et al. 2023, arXiv:2310.01889): keys go once round the teams, their gradients one step behind.

With the layouts ``zigzag`` and ``striped`` it is what carries these names, with equal work in every step.
"""

from trainsys.sequence.layouts import num_positions
from trainsys.sequence.place import Place, Plan

MOST = 1024  # positions of a slice: what is under way stays small beside a long sequence


def plan(place: Place) -> Plan:
    """One outgoing link of each rank carries everything."""
    longest = max(map(num_positions, place.layout))
    journey = place.keys("ring", slices=max(1, -(-longest // MOST)))
    return Plan(journey, journey)
