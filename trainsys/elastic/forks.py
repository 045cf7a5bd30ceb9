"""The fork server, from which every rank process starts. Nothing heavy is imported here."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from multiprocessing import resource_tracker
from multiprocessing.forkserver import ensure_running

from trainsys.comm.lookups import retry_soon

PRELOAD = ["trainsys.elastic.preload"]


def forkserver() -> mp.context.ForkServerContext:
    """Start method of rank processes: a thread-free parent that has imported torch once.

    Returns at once, while that parent imports: called early, it imports while the caller does.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # c10d tells at length of every store that is hung up on
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are here; spares gloo a look-up of the host's name
    retry_soon()
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    resource_tracker.ensure_running()  # would unblock both signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        ensure_running()  # with both blocked, and its children inherit that: the agent alone decides when to stop
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
