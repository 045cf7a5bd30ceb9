"""Which method is fastest in a place: every one that can serve it is planned and priced. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from trainsys.sequence.methods import METHODS
from trainsys.sequence.place import Place, Plan, in_canonical_order
from trainsys.sequence.price import Price, Rates, Shape, price

MANY = 8  # teams, beyond which only methods are priced whose messages grow with their number and not its square
FEW_MESSAGES = ("ring", "ulysses", "hybrid", "hierarchical", "two_level")
AS_OTHERS = ("token_ring", "burst", "all_gather")  # merged canonically, they are ring, ring and direct


@dataclass(frozen=True)
class Choice:
    """A method, its plan and what it would take."""

    method: str
    plan: Plan
    price: Price


def choices(
    place: Place, shape: Shape, rates: Rates, canonical: bool, training: bool = True, named: str = ""
) -> list[Choice]:
    """Of all methods that can serve the place, the fastest first; equal ones in the order of the registry.

    Args:
        canonical: of those, the ones that can merge canonically and are then none of the others.
        training: forward and backward count, else the forward alone.
        named: one that is priced in any case.
    """
    found = []
    for method, make in METHODS.items():
        left_out = (place.size > MANY and method not in FEW_MESSAGES) or (canonical and method in AS_OTHERS)
        if left_out and method != named:
            continue
        try:
            plan = make(place)
            plan = in_canonical_order(plan, place) if canonical else plan
        except ValueError:
            continue
        found.append(Choice(method, plan, price(plan, place, shape, rates)))
    return sorted(found, key=lambda choice: choice.price.seconds if training else choice.price.forward_s)
