"""gloo: over TCP, for the CPU. It frees nobody by itself: the group ends its own sockets (shutdown(2)), which does.

In torch 2.13 its ``abort`` has no effect on a blocked thread or on peers, and it neither shrinks nor reconfigures.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, cast

from torch._C._distributed_c10d import ProcessGroupGloo, Store

from trainsys.comm.backends.backend import Backend


def _options(timeout: timedelta, address: str) -> Any:
    options = cast(Any, ProcessGroupGloo)._Options()
    options._devices, options._timeout, options._threads = [_device(address)], timeout, 2
    return options


def _device(address: str) -> Any:
    """A listener and event thread of this group alone: by its address the group's connections are told from others."""
    if address:
        return ProcessGroupGloo.create_device(hostname=address)
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if interface:
        return ProcessGroupGloo.create_device(interface=interface)
    return ProcessGroupGloo.create_default_device()


def _build(store: Store, index: int, size: int, options: Any) -> Any:
    return ProcessGroupGloo(store, index, size, options)


BACKEND = Backend("gloo", True, _options, _build, lambda built: None, may_shrink=False)
