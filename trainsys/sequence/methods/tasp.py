"""TASP (arXiv:2509.26541): keys in as many parts as there are arc-disjoint rings, so that all links work.

Here also backward, with any length, any mask and any number of teams: where fewer rings exist (4, 6) fewer are used.
"""

from trainsys.sequence.place import Place, Plan


def plan(place: Place) -> Plan:
    """Sub-chunks keep the balance of the layout: each has its share of every run."""
    journey = place.keys("k_ring")
    return Plan(journey, journey)
