"""Why there is no layout at all, in one line: what the nearest one lacks."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection
from math import log

from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.enumerate import candidates
from trainsys.planner.plan import Miss
from trainsys.planner.stages import notation

NO_FIT = "no layout fits"


def nothing_with(config: RunConfig, num_ranks: int, fixed: Collection[str], rejected: Counter[str]) -> str:
    """That no layout has what is fixed, and which one comes nearest."""
    wanted = {key: getattr(config.parallel, key) for key in fixed}

    def far(parallel: ParallelConfig) -> tuple[float, float]:
        """How many keys differ, and by what factor in all."""
        pairs = [(value, getattr(parallel, key)) for key, value in wanted.items() if getattr(parallel, key) != value]
        factors = [abs(log((a + 1) / (b + 1))) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
        return len(pairs), sum(factors)

    legal, every = candidates(config, num_ranks)
    said = "no legal layout on {} rank{} has {}".format(
        num_ranks, "s"[: num_ranks != 1], " ".join(f"parallel.{key}={_text(value)}" for key, value in wanted.items())
    )
    said += "".join(f": {reason}" for reason, _ in rejected.most_common(1))
    if not legal:
        return said + "".join(f"; nor any other: {reason}" for reason, _ in every.most_common(1) if not rejected)
    nearest = min(legal, key=far)
    other = [key for key, value in wanted.items() if getattr(nearest, key) != value]
    knobs = " ".join(f"parallel.{key}={_text(getattr(nearest, key))}" for key in other)
    return f"{said}; nearest is {notation(nearest)}, with {knobs}"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def nothing_fits(topology: Topology, rejected: Counter[str], nearest: Miss | None, canonical: bool) -> str:
    """Why there is no layout at all, in one line, which starts with `NO_FIT` where it is for memory."""
    ranks = f"{topology.num_ranks} rank{'s'[: topology.num_ranks != 1]}"
    if nearest is None:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in rejected.most_common(3))
        return f"no legal layout on {ranks}: {reasons}"
    parts = dataclasses.asdict(nearest.memory)
    largest = max(parts, key=lambda name: parts[name])
    return (
        f"{NO_FIT} on {ranks}: nearest is {nearest.layout}, which needs {nearest.peak_gib:.3g} GiB per rank and "
        f"misses cluster.device.memory_gib={nearest.limit_gib:g} by {nearest.over_gib:.3g} GiB "
        f"({largest} {parts[largest]:.3g} GiB); use more ranks"
        + (" or set parallel.reduction=fast" if canonical and _fast_fits(nearest) else "")
    )


def _fast_fits(nearest: Miss) -> bool:
    """Whether it would fit with gradients added up in place, which are at most twice as large as the weights.

    Under ZeRO 2 and 3 gradients are added up as they come, so that it would change nothing. Nor does it where a change
    of layout, for which the state stands twice, needs as much as a step.
    """
    memory = nearest.memory
    step = nearest.peak_gib - memory.gradients + 2 * memory.parameters
    changing = 2 * (memory.optimizer + memory.mirror)
    return max(step, changing) <= nearest.limit_gib and not re.search("zero[23]", nearest.layout)
