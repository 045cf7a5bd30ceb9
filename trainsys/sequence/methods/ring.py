"""Ring attention (Liu et al. 2023, arXiv:2310.01889): keys go once round the teams, their gradients one step behind.

With the layouts ``zigzag`` and ``striped`` it is what carries these names, with equal work in every step.
"""

from trainsys.sequence.place import Place, Plan


def plan(place: Place) -> Plan:
    """One outgoing link of each rank carries everything."""
    journey = place.keys("ring")
    return Plan(journey, journey)
