"""GPipe (Huang et al. 2019, arXiv:1811.06965, section 2.3): every forward, then every backward.

Step time (m + P - 1)·(tF + tB), bubble (P - 1)/(m + P - 1); every lane keeps all its m microbatches' activations.
"""

from __future__ import annotations

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule, stage_major


def generate(routes: Routes) -> Schedule:
    """Compute-only GPipe schedule, both directions in `Routes.order`, one stage per lane."""
    placement, order = stage_major(routes.replicas), routes.order()
    lanes = []
    for stage, replica in placement:
        mine = [mb for mb in order if routes.table[stage][mb] == replica]
        lanes.append(tuple(Action(stage, kind, mb) for kind in (Kind.F, Kind.B) for mb in mine))
    return Schedule("gpipe", routes, tuple(lanes), placement)
