"""What would make a layout fit: single changes, each held against the device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.check import check_layout
from trainsys.planner.predict import worst_stage
from trainsys.planner.stages import Stages, notation


@dataclass(frozen=True)
class Remedy:
    """One change that lets a layout fit, or comes nearest to it."""

    change: str
    layout: str
    peak_gib: float
    fits: bool


def remedies(config: RunConfig, parallel: ParallelConfig) -> tuple[Remedy, ...]:
    """Changes, each alone, that would let `parallel` fit, the smallest of each kind; where none does, the best one."""
    found = list[tuple[str, Remedy]]()
    for change, other, layout in _changes(config, parallel):
        if not illegal_for(other, layout):
            needed, limit = worst_stage(replace(other, parallel=layout), Stages.of(other.model, layout))
            remedy = Remedy(change, notation(layout), needed.total, needed.total <= limit)
            found.append((change.partition("=")[0], remedy))
    fitting = dict[str, Remedy]()
    for knob, remedy in found:
        if remedy.fits:
            fitting.setdefault(knob, remedy)
    return tuple(fitting.values()) or tuple(sorted((r for _, r in found), key=lambda remedy: remedy.peak_gib)[:1])


def illegal_for(config: RunConfig, parallel: ParallelConfig) -> str:
    """The rule that `parallel` breaks, with the advice; empty when it is legal."""
    try:
        check_layout(replace(config, parallel=parallel))
    except ValueError as error:
        return str(error)
    return ""


def peak_gib(config: RunConfig, parallel: ParallelConfig) -> float:
    """GiB on the rank that needs most under `parallel`."""
    return worst_stage(replace(config, parallel=parallel), Stages.of(config.model, parallel))[0].total


def _changes(config: RunConfig, parallel: ParallelConfig) -> Iterator[tuple[str, RunConfig, ParallelConfig]]:
    """Smaller steps of a kind first."""
    size = config.batch.microbatch_size
    for smaller in [n for n in range(size - 1, 0, -1) if size % n == 0]:
        batch = replace(config.batch, microbatch_size=smaller)
        yield f"batch.microbatch_size={smaller}", replace(config, batch=batch), parallel
    if parallel.recompute == "none":
        yield "parallel.recompute=full", config, replace(parallel, recompute="full")
    if parallel.recompute == "none" and parallel.offload == "none":
        yield "parallel.offload=activations", config, replace(parallel, offload="activations")
    if parallel.dp * parallel.cp > 1 and parallel.reduction == "canonical":
        for zero in range(parallel.zero + 1, 4):
            yield f"parallel.zero={zero}", config, replace(parallel, zero=zero)
    for axis in ("pp", "tp"):
        for times in (n for n in range(2, parallel.dp + 1) if parallel.dp % n == 0):
            dp, degree = parallel.dp // times, getattr(parallel, axis) * times
            zero = parallel.zero if dp * parallel.cp > 1 else 0
            shifted = replace(parallel, dp=dp, zero=zero, **{axis: degree})
            yield f"parallel.{axis}={degree} parallel.dp={dp}", config, shifted
    if parallel.reduction == "canonical" and parallel.zero < 2:
        yield "parallel.reduction=fast", config, replace(parallel, reduction="fast")
