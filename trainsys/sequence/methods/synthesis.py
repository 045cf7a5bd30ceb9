"""Keys go over the datapath that is synthesised for these very wires (TACOS, arXiv:2304.05301)."""

from trainsys.sequence.place import Place, Plan


def plan(place: Place) -> Plan:
    """For wires that no method was made for."""
    journey = place.keys("synthesis")
    return Plan(journey, journey)
