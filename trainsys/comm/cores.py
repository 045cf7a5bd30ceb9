"""How a rank process shares the cores with the other ranks of its machine."""

from __future__ import annotations

import os

import torch


def share_cores() -> None:
    """One compute thread, and no thread of this process takes a core away by waking up (Linux ``SCHED_BATCH``).

    gloo's event thread spins while another thread of the process holds a connection's lock. Where its wake-up pushed
    that very thread off the core, both lost the rest of the time slice: on 2 cores with 4 ranks the median exchange of
    16 KiB took 4 ms, and takes 0.09 ms since. Threads inherit the policy, so call this before there are any.
    """
    torch.set_num_threads(1)
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
