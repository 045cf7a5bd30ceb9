"""What a group needs of a backend, and what one may be able to do besides: asked of the object, never of a version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store

Build = Callable[[Store, int, int, Any], Any]  # store, position, size, options -> c10d's object


@dataclass(frozen=True)
class Backend:
    """One of `BACKENDS`.

    Attributes:
        blocks: waiting for an operation holds the thread; else it orders streams and returns.
        options: of a group whose operations may take so long, at that address of this host (empty: any); raises
            RuntimeError where there is none here.
        build: c10d's object; raises RuntimeError.
        free: end what is under way in it, beside the sockets that the group ends itself.
        may_shrink: members tell each other whether they hold what could be shrunk before they connect.
    """

    name: str
    blocks: bool
    options: Callable[[timedelta, str], Any]
    build: Build
    free: Callable[[Any], None]
    may_shrink: bool


@dataclass(frozen=True)
class Capabilities:
    """What an object of c10d can do.

    Attributes:
        shrinks: leave members out, ``shrink`` (ncclCommShrink, NCCL 2.27).
        reconfigures: take its next members, ``reconfigure`` (c10d's interface for fault tolerance).
    """

    shrinks: bool
    reconfigures: bool


def capabilities(built: Any) -> Capabilities:
    """Ask a backend's object."""
    return Capabilities(
        bool(getattr(built, "supports_shrinking", False)) and hasattr(built, "shrink"),
        bool(getattr(built, "supports_reconfigure", False)) and hasattr(built, "get_reconfigure_handle"),
    )


def can_be_deferred(options: Any) -> bool:
    """Whether a group can be built with no members yet, to take them by ``reconfigure``."""
    return hasattr(options, "enable_reconfigure")
