"""The device of a rank, and how much of its memory was used."""

from __future__ import annotations

import torch

from trainsys.config import RunConfig


def device_of(config: RunConfig, rank: int) -> torch.device:
    """This rank's device: a GPU of its node under nccl, the CPU under gloo."""
    if config.cluster.device.backend == "nccl":
        return torch.device("cuda", rank % max(1, torch.cuda.device_count()))
    return torch.device("cpu")


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this rank: allocated by torch on a GPU, resident set of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
