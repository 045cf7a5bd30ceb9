"""What a process owes to the one that started it: not to outlive it, to leave stopping to it, to be known by name."""

import ctypes
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h


def die_with_parent() -> None:
    """SIGKILL this process when its parent ends, even while it is stopped. A fork does not inherit the bond."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def name_process(name: str) -> None:
    """Of this process's main thread; its first 15 characters count."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def leave_stopping_to_others() -> None:
    """Ignore SIGINT and SIGTERM, which a terminal sends to every process: the agent decides when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def leave_with_parent() -> None:
    """End this process when the one that had it started ends: with a fork server between them it is not its parent."""
    threading.Thread(target=_leave, daemon=True, name="agent").start()


def _leave() -> None:
    agent = multiprocessing.parent_process()
    assert agent is not None
    wait([agent.sentinel])
    os._exit(1)
