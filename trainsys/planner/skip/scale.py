"""Gradients of stages that see only some of the microbatches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def gradient_scales(visits: Sequence[Sequence[int]], num_stages: int) -> tuple[float, ...]:
    """``[stage]``: what turns a stage's sum of gradients over m microbatches, divided by m, into the mean over those
    that visited it: m / visitors; 0 for a stage that nobody visited, whose gradient is nothing.

    Without it a stage learns the slower, the less it is visited, and its gradient weighs less in the global norm.

    Args:
        visits: stages by microbatch, each at most once.
    """
    count = Counter(stage for path in visits for stage in path)
    return tuple(len(visits) / count[stage] if count[stage] else 0.0 for stage in range(num_stages))
