"""Backends of process groups, one file each, by name."""

from __future__ import annotations

from trainsys.comm.backends import gloo, nccl
from trainsys.comm.backends.backend import Backend

BACKENDS: dict[str, Backend] = {
    "gloo": gloo.BACKEND,
    "nccl": nccl.BACKEND,
}
