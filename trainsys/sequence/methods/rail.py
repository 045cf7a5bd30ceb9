"""TASP over several hosts (arXiv:2509.26541): paths through each host joined to rings, along the adapters' rails."""

from trainsys.sequence.place import Place, Plan


def plan(place: Place) -> Plan:
    """Each rank sends one sub-chunk per step through its adapter, all others inside its host."""
    journey = place.keys("rail")
    return Plan(journey, journey)
