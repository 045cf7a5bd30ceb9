"""Keys cross to each other host once and are passed on inside (after LoongTrain, arXiv:2406.18485)."""

from trainsys.sequence.place import Place, Plan


def plan(place: Place) -> Plan:
    """Where uplinks are what is slow, they carry the least that is possible."""
    journey = place.keys("two_level")
    return Plan(journey, journey)
