"""Schedule generators, one file each, by the name that ``parallel.schedule`` gives."""

from __future__ import annotations

from collections.abc import Callable

from trainsys.schedule.comms import insert_comms
from trainsys.schedule.generators import gpipe, interleaved, one_f_one_b
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.verify import verify

Generator = Callable[[Routes, int], Schedule]

GENERATORS: dict[str, Generator] = {
    "gpipe": gpipe.generate,
    "1f1b": one_f_one_b.generate,
    "interleaved": interleaved.generate,
}


def build(name: str, routes: Routes, vp: int = 1) -> Schedule:
    """The named schedule for `routes`, with its SENDs and RECVs, verified.

    Args:
        vp: how many of the routes' stages, each P apart, run on the same lanes.

    Raises:
        ValueError: for an unknown name, listing the known ones, or a vp that the schedule does not have.
    """
    if name not in GENERATORS:
        raise ValueError(f"parallel.schedule={name} is unknown; choose one of {', '.join(GENERATORS)}")
    schedule = insert_comms(GENERATORS[name](routes, vp))
    verify(schedule)
    return schedule
