"""Methods of attention over a cut sequence, one file each, by name. They import no torch: the selector prices plans.

Each is ``plan(place) -> Plan`` and raises ValueError, with the methods that can, for a place that it cannot serve.
"""

from __future__ import annotations

from collections.abc import Callable

from trainsys.sequence.methods import (
    all_gather,
    burst,
    direct,
    hierarchical,
    hybrid,
    rail,
    ring,
    sliced,
    synthesis,
    tasp,
    token_ring,
    two_level,
    ulysses,
)
from trainsys.sequence.place import Place, Plan

METHODS: dict[str, Callable[[Place], Plan]] = {
    "ring": ring.plan,
    "tasp": tasp.plan,
    "rail": rail.plan,
    "direct": direct.plan,
    "sliced": sliced.plan,
    "two_level": two_level.plan,
    "hierarchical": hierarchical.plan,
    "synthesis": synthesis.plan,
    "token_ring": token_ring.plan,
    "burst": burst.plan,
    "all_gather": all_gather.plan,
    "ulysses": ulysses.plan,
    "hybrid": hybrid.plan,
}
