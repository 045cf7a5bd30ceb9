"""Probability that a layout runs out of memory, from how far memory predictions lie from published peaks.

``trainsys validate benchmarks/published`` predicts 131 measured peaks. ln(measured / predicted) has tails heavier than
the normal distribution's (its fourth standardised moment is 4.7; 3 is normal, 4.2 logistic), and is taken to be
logistic with the mean and the standard deviation of those 131. They are of other frameworks on GPUs: for this project's
engine, and for a CPU, the same formulas are believed to err as much, which no published row can show.
"""

from __future__ import annotations

from math import exp, log, pi, sqrt

PEAKS = 131
BIAS = 0.0015  # fitted on the published peaks: mean of ln(measured / predicted)
SPREAD = 0.09  # fitted on them: standard deviation


def oom_probability(peak_gib: float, limit_gib: float) -> float:
    """Probability, in [0, 1], that a rank predicted to need `peak_gib` needs more than `limit_gib`.

    Raises:
        ValueError: for a limit that is not positive.
    """
    if limit_gib <= 0:
        raise ValueError(f"cluster.device.memory_gib={limit_gib:g} must be positive")
    if peak_gib <= 0:
        return 0.0
    z = (log(limit_gib / peak_gib) - BIAS) / (SPREAD * sqrt(3) / pi)
    return 1 / (1 + exp(min(z, 700.0)))
