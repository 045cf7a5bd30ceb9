"""This rank's context parallelism from the run's config."""

from __future__ import annotations

import torch

from trainsys.comm.communicator import Communicator
from trainsys.config import RunConfig
from trainsys.parallel.sequence.context import ContextParallel, cp_ranks
from trainsys.planner.attention import rates_of, wires_among
from trainsys.space.layout import Layout


def context_parallel(
    config: RunConfig, layout: Layout, rank: int, comm: Communicator, device: torch.device
) -> ContextParallel:
    """The group of `rank`, already connected, on the wires that the cluster declares."""
    parallel, members = config.parallel, cp_ranks(layout, rank)
    return ContextParallel(
        comm.group(members),
        members,
        config.batch.seq_len,
        device,
        parallel.cp_layout,
        wires_among(config.cluster, members),
        parallel.cp_method,
        parallel.cp_merge == "canonical",
        rates_of(config.cluster, len(layout.ranks)) if parallel.cp_method == "auto" else None,
    )
