"""Time of what several ranks do together: all start at a barrier, the slowest ends it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from trainsys.comm.group import Group

Span = tuple[float, float]  # start and end on the machine's common clock


def span(group: Group, action: Callable[[], object]) -> Span:
    """One action of this rank, begun together with all of `group`."""
    group.backend.barrier().wait()
    start = time.perf_counter()
    action()
    return start, time.perf_counter()


def median_s(spans: Sequence[Sequence[Span]]) -> float:
    """Median over the repetitions of ``spans[rank][repetition]``, each from its first start to its last end."""
    return statistics.median(max(e for _, e in one) - min(s for s, _ in one) for one in zip(*spans, strict=True))
