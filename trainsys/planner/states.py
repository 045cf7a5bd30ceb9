"""Seconds that linear attention's states and rows take between cp teams (`parallel/sequence/linear`)."""

from __future__ import annotations

from functools import lru_cache

from trainsys.comm.scan_time import choose
from trainsys.comm.topology import Link
from trainsys.comm.wires import star
from trainsys.config import RunConfig
from trainsys.models.geometry import resolve
from trainsys.models.linear_llama_geometry import is_softmax, state_elements
from trainsys.planner.precision import Precision
from trainsys.planner.stages import Stages
from trainsys.sequence.layouts import LAYOUTS, contiguous
from trainsys.sequence.moves import moves


def softmax_layers(config: RunConfig, stages: Stages, run: int) -> int:
    """Layers of a run whose keys and values the teams exchange."""
    if config.model.family != "linear_llama":
        return stages.runs[run]
    return stages.runs[run] - len(_linear(config, stages, run))


def linear_s(config: RunConfig, stages: Stages, run: int, link: Link | None) -> float:
    """Seconds of the linear layers of a run in one forward of a microbatch, over a switch with such links; the backward
    takes as many.

    Each layer scans its states, counted in full though local work goes on beside. Layers that follow each other convert
    their rows once before and once after.
    """
    if config.model.family != "linear_llama" or link is None:
        return 0.0
    model, size, layers = resolve(config.model), config.batch.microbatch_size, _linear(config, stages, run)
    state, transition = (4 * size * n / min(stages.tp, model.num_kv_heads) for n in state_elements(model))
    row = size * model.dim * Precision.of(config.train.dtype).activation
    times = 2 * sum(layer - 1 not in layers for layer in layers)
    scan_s, convert_s = (
        _scan_s(stages.cp, link, state, transition),
        _convert_s(config.parallel.cp_layout, stages.cp, link, config.batch.seq_len, row),
    )
    return len(layers) * scan_s + times * convert_s


def _linear(config: RunConfig, stages: Stages, run: int) -> list[int]:
    model = resolve(config.model)
    return [b for b in stages.run_blocks(run) if 0 <= b < model.num_layers and not is_softmax(model, b)]


@lru_cache(maxsize=256)
def _scan_s(cp: int, link: Link, state: float, transition: float) -> float:
    return choose(star(cp, link.gbps, link.latency_s), state, transition, most_blocks=1 << 10).seconds


@lru_cache(maxsize=256)
def _convert_s(layout: str, cp: int, link: Link, seq_len: int, row: int) -> float:
    """From a layout to neighbours or back."""
    moved = moves(LAYOUTS[layout](seq_len, cp), contiguous(seq_len, cp), row)
    busiest = max(*map(sum, moved), *map(sum, zip(*moved, strict=True)))
    return link.transfer_s(busiest) if busiest else 0.0
