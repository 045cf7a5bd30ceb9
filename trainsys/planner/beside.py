"""What lies beside a search: layouts with the other reduction, or with another microbatch size than the one given."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from trainsys.config import RunConfig
from trainsys.planner.plan import Plan, PlanReport
from trainsys.planner.search import search

_WORTH = 1.1  # times as fast: worth a word
_LONG_S = 2.0  # a search that took so long is not done again
_KEEP = 4  # of which uneven splits are looked at


def reduction_fast(config: RunConfig, report: PlanReport, fixed: Collection[str]) -> Plan | None:
    """The best layout with ``parallel.reduction=fast`` where it is 10 % faster than that of `report`, else None.

    Not looked for where `report` took long. After a search of all microbatch sizes that took more than half of that
    only the winner's is tried.
    """
    if config.parallel.reduction != "canonical" or report.search_s > _LONG_S:
        return None
    best = report.plans[0]
    own = replace(config, batch=replace(config.batch, microbatch_size=best.microbatch_size))
    any_microbatch = report.any_microbatch and report.search_s < _LONG_S / 2
    fast = _best(own, fixed, any_microbatch, report.num_ranks)
    return fast if fast and best.step_s >= _WORTH * fast.step_s else None


def what_fits(config: RunConfig, fixed: Collection[str], any_microbatch: bool, try_fast: bool = True) -> str:
    """For a search in which nothing fits: the single changes, tried, with which something does; empty: none of them."""
    found = {}
    if not any_microbatch:
        other = _with_any_size(config, fixed)
        if other:
            found[f"batch.microbatch_size={other.microbatch_size}"] = other
    fast = _best(config, fixed, any_microbatch) if try_fast and config.parallel.reduction == "canonical" else None
    if fast:
        found["parallel.reduction=fast"] = fast
    return "".join(f"; {knob} fits: {plan.name(any_microbatch)}" for knob, plan in found.items())


def _with_any_size(config: RunConfig, fixed: Collection[str]) -> Plan | None:
    """The best layout with any microbatch size; None where none fits."""
    try:
        return search(config, fixed=fixed, keep=_KEEP, any_microbatch=True).plans[0]
    except ValueError:
        return None


def _best(config: RunConfig, fixed: Collection[str], any_microbatch: bool, num_ranks: int | None = None) -> Plan | None:
    """The best layout with the fast reduction; None where none fits, or what is fixed does not go with it."""
    fast = replace(config, parallel=replace(config.parallel, reduction="fast"))
    try:
        return search(fast, num_ranks, fixed, keep=_KEEP, any_microbatch=any_microbatch).plans[0]
    except ValueError:
        return None
