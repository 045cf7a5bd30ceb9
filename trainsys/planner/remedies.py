"""What would make a layout fit: single changes, each held against the device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.check import check_layout
from trainsys.planner.enumerate import divisors
from trainsys.planner.predict import worst_stage
from trainsys.planner.stages import Stages, notation

_LITTLE = 0.01  # relative: less of the memory is no help


@dataclass(frozen=True)
class Remedy:
    """One change that lets a layout fit, or comes nearest to it."""

    change: str
    layout: str
    peak_gib: float
    fits: bool


def remedies(config: RunConfig, parallel: ParallelConfig, sized: bool = False) -> tuple[Remedy, ...]:
    """Changes, each alone, that would let `parallel` fit, the smallest of each kind; where none does, the best one that
    makes a difference. Layouts are named with their microbatch size where sizes were searched (`sized`)."""
    found, now = list[tuple[str, Remedy]](), peak_gib(config, parallel)
    for change, other, layout in _changes(config, parallel):
        if not illegal_for(other, layout):
            needed, limit = worst_stage(replace(other, parallel=layout), Stages.of(other.model, layout))
            remedy = Remedy(
                change, notation(layout, other.batch.microbatch_size * sized), needed.total, needed.total <= limit
            )
            if remedy.fits or remedy.peak_gib < (1 - _LITTLE) * now:
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
    """Smaller steps of a kind first. Smaller microbatches keep fewer activations; larger ones are fewer, and the
    canonical reduction keeps fewer sums of them."""
    size, whole = config.batch.microbatch_size, config.batch.global_size
    smaller = [n for n in range(size - 1, 0, -1) if size % n == 0]
    for other in smaller + [n for n in divisors(whole) if n > size and n % size == 0]:
        batch = replace(config.batch, microbatch_size=other)
        yield f"batch.microbatch_size={other}", replace(config, batch=batch), parallel
    if parallel.recompute == "none":
        yield "parallel.recompute=full", config, replace(parallel, recompute="full")
    if parallel.recompute == "none" and parallel.offload == "none":
        yield "parallel.offload=activations", config, replace(parallel, offload="activations")
    if parallel.dp * parallel.cp > 1 and parallel.reduction == "canonical":
        for zero in range(parallel.zero + 1, 4):
            yield f"parallel.zero={zero}", config, replace(parallel, zero=zero)
    for axis in () if parallel.stage_layers or parallel.stage_replicas else ("pp", "tp"):
        for times in (n for n in range(2, parallel.dp + 1) if parallel.dp % n == 0):
            dp, degree = parallel.dp // times, getattr(parallel, axis) * times
            zero = parallel.zero if dp * parallel.cp > 1 else 0
            shifted = replace(parallel, dp=dp, zero=zero, **{axis: degree})
            yield f"parallel.{axis}={degree} parallel.dp={dp}", config, shifted
    if parallel.reduction == "canonical" and parallel.zero < 2:
        yield "parallel.reduction=fast", config, replace(parallel, reduction="fast")
