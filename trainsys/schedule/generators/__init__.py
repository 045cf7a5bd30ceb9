"""Schedule generators, one file each, by the name that ``parallel.schedule`` gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trainsys.schedule.collector import no_collections
from trainsys.schedule.comms import insert_comms
from trainsys.schedule.from_file import from_file, is_file, lies_in_v
from trainsys.schedule.generators import (
    auto,
    bfs,
    dualpipev,
    gpipe,
    interleaved,
    one_f_one_b,
    vhalf,
    vmin,
    zb1p,
    zb2p,
    zbv,
)
from trainsys.schedule.generators.capped import capped
from trainsys.schedule.problem import Problem
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.verify import verify
from trainsys.schedule.vocabulary import on_all_lanes

Generator = Callable[[Problem], Schedule]  # of compute actions alone

GENERATORS: dict[str, Generator] = {
    "gpipe": capped(gpipe.generate),
    "1f1b": capped(one_f_one_b.generate),
    "interleaved": capped(interleaved.generate),
    "bfs": capped(bfs.generate),
    "zb1p": capped(zb1p.generate),
    "zb2p": capped(zb2p.generate),
    "zbv": capped(zbv.generate),
    "vhalf": capped(vhalf.generate),
    "vmin": capped(vmin.generate),
    "dualpipev": capped(dualpipev.generate),
    "auto": capped(auto.generate),
}


def generate(name: str, problem: Problem) -> Schedule:
    """The named schedule of `problem`, generated or from FILE.csv, with its SENDs and RECVs, verified.

    Raises:
        ValueError: for an unknown name, listing the known ones, or a problem that the schedule cannot solve.
    """
    with no_collections():
        if is_file(name):
            schedule = capped(partial(from_file, name))(problem)
        elif name in GENERATORS:
            make = GENERATORS[name]
            schedule = insert_comms(make(problem) if problem.vocabulary == "ends" else on_all_lanes(make, problem))
        else:
            raise ValueError(f"parallel.schedule={name} is unknown; choose one of {', '.join(GENERATORS)} or FILE.csv")
        verify(schedule)
    return schedule


def build(name: str, routes: Routes, vp: int = 1) -> Schedule:
    """`generate` for actions of any cost, and stages that lie as the schedule wants them."""
    return generate(name, Problem(routes, vp, lies_in_v(name)))
