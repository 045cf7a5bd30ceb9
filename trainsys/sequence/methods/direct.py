"""Everyone sends its keys to everyone at once, in one hop; gradients come home as directly."""

from trainsys.sequence.place import Place, Plan


def plan(place: Place) -> Plan:
    """Nothing is passed on, so each is sent only what it looks at, and gradients may travel in the inputs' type."""
    journey = place.keys("direct")
    return Plan(journey, journey, exact_wire=False)
