"""TokenRing (Wang et al. 2024, arXiv:2412.20501): queries go round, results straight home; keys stay where they are.

Under full attention two directions are used at once. The backward, which the paper leaves out, is that of ``ring``.
"""

from trainsys.sequence.place import Place, Plan


def plan(place: Place) -> Plan:
    """Grouped queries make it dearer by heads / kv_heads than moving keys."""
    return Plan(place.queries("ring", home="direct"), place.keys("ring"))
