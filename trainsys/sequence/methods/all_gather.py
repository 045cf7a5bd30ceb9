"""All keys are gathered before one local attention (Llama 3, arXiv:2407.21783, §3.3.2): no steps, and no overlap.

Nothing is merged but what lies before and at the diagonal, so it rounds least.
"""

from trainsys.sequence.place import Place, Plan


def plan(place: Place) -> Plan:
    """Memory: the keys of the whole sequence, in the forward and again in the backward."""
    journey = place.keys("direct")
    return Plan(journey, journey, at_once=True, exact_wire=False)
