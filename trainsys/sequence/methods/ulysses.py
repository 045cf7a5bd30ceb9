"""DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv:2309.14509): heads exchanged for positions."""

from trainsys.sequence.methods.hybrid import shared
from trainsys.sequence.place import Place, Plan


def plan(place: Place) -> Plan:
    """Every mask is balanced. Raises ValueError where there are fewer heads than teams."""
    if place.heads < place.size:
        raise ValueError(
            f"parallel.cp_method=ulysses gives each of parallel.cp={place.size} teams a head, but there are "
            f"{place.heads} on a tp rank; set parallel.cp_method=hybrid, ring or auto, or parallel.cp={place.heads}"
        )
    return shared(place, place.size)
