"""BurstAttention (Sun et al. 2024, arXiv:2403.09347): keys go round in the forward, queries in the backward.

What travels back is queries, gradients and sums instead of keys and two gradients in full: a quarter less where every
query head has its own keys, more under grouped queries (break-even at heads / kv_heads = 4/3).
"""

from trainsys.sequence.place import Place, Plan


def plan(place: Place) -> Plan:
    """Over the ring, gradients of queries behind them."""
    return Plan(place.keys("ring"), place.queries("ring"))
