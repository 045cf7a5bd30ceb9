"""A process that must not outlive its parent, and has a name that `ps` and `top` show."""

import ctypes
import signal

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h


def die_with_parent() -> None:
    """SIGKILL this process when its parent ends, even while it is stopped. A fork does not inherit the bond."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def name_process(name: str) -> None:
    """Of this process's main thread; its first 15 characters count."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())
