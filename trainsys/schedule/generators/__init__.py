"""Schedule generators, one file each, by the name that ``parallel.schedule`` gives."""

from __future__ import annotations

from collections.abc import Callable

from trainsys.schedule.comms import insert_comms
from trainsys.schedule.generators import gpipe, one_f_one_b
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.verify import verify

GENERATORS: dict[str, Callable[[Routes], Schedule]] = {
    "gpipe": gpipe.generate,
    "1f1b": one_f_one_b.generate,
}


def build(name: str, routes: Routes) -> Schedule:
    """The named schedule for `routes`, with its SENDs and RECVs, verified.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    if name not in GENERATORS:
        raise ValueError(f"parallel.schedule={name} is unknown; choose one of {', '.join(GENERATORS)}")
    schedule = insert_comms(GENERATORS[name](routes))
    verify(schedule)
    return schedule
