"""Where a job stands, and that it cannot go on."""

from __future__ import annotations

from enum import Enum


class ElasticError(RuntimeError):
    """Training cannot go on; the message says what is missing."""


class Phase(Enum):
    STARTING = "starting"
    QUIESCING = "quiescing"
    CHANGING = "changing"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"
