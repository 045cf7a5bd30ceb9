"""NCCL: for CUDA. Its ``abort`` frees kernels and peers; from NCCL 2.27 on it shrinks.

Several ranks have not run here, for want of GPUs: `tests/gpu` says what has to hold where there are some.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from trainsys.comm.backends.backend import Backend


def _options(timeout: timedelta, address: str) -> Any:
    """NCCL takes no address per group: `address` is of no effect."""
    if not dist.is_nccl_available():
        raise RuntimeError("this torch was built without NCCL; set cluster.device.backend=gloo")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return options


def _build(store: Store, index: int, size: int, options: Any) -> Any:
    return dist.ProcessGroupNCCL(store, index, size, options)


def _free(built: Any) -> None:
    built.abort()


BACKEND = Backend("nccl", False, _options, _build, _free, may_shrink=True)
