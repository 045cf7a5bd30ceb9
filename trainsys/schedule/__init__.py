"""When each lane does what: actions, generators, verifier, simulator, timeline. Never imports torch."""

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.costs import Costs
from trainsys.schedule.footprint import Footprint
from trainsys.schedule.from_file import is_file, lies_in_v
from trainsys.schedule.generators import GENERATORS, build, generate
from trainsys.schedule.problem import Problem
from trainsys.schedule.residency import with_offload, with_recompute
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule, ScheduleError
from trainsys.schedule.simulate import Event, Simulation, simulate
from trainsys.schedule.torch_csv import export_csv, import_csv
from trainsys.schedule.verify import verify

__all__ = [
    "GENERATORS",
    "Action",
    "Costs",
    "Event",
    "Footprint",
    "Kind",
    "Problem",
    "Routes",
    "Schedule",
    "ScheduleError",
    "Simulation",
    "build",
    "export_csv",
    "generate",
    "import_csv",
    "is_file",
    "lies_in_v",
    "simulate",
    "verify",
    "with_offload",
    "with_recompute",
]
