"""Faults are data: a schedule that prints and parses, random ones from a seed, and the injector inside each rank."""

from trainsys.elastic.faults.event import CHANGE_PHASES, MANAGER, MANAGER_PHASES, PHASES, STEP_PHASES, FaultEvent
from trainsys.elastic.faults.injector import Injector
from trainsys.elastic.faults.parse import parse_faults
from trainsys.elastic.faults.random_kills import random_kills
from trainsys.elastic.faults.registry import NEMESES

__all__ = [
    "CHANGE_PHASES", "MANAGER", "MANAGER_PHASES", "NEMESES", "PHASES", "STEP_PHASES", "FaultEvent", "Injector",
    "parse_faults", "random_kills",
]  # fmt: skip
