"""Clusters at random, as volunteers' would be: nodes in regions, quick links within and slow ones between them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from trainsys.planner.skip.setting import Setting

REGIONS = 4
NEAR, FAR = (1.25, 0.002), ((0.05, 0.3), (0.02, 0.15))  # GB/s, seconds; ranges between regions
MESSAGE_BYTES = 2048 * 2048 * 2  # of a microbatch: tokens · features · bfloat16
GRADIENT_BYTES = 50e6 * 2  # of a stage: parameters · bfloat16
COMPUTE_S = (0.08, 0.1, 0.12)


def replicas(nodes: int, stages: int = 6) -> tuple[int, ...]:
    """Of `nodes` a quarter in stage 0, the others in equal parts: 5, 3, 3, 3, 3, 3 of 20."""
    first = max(1, round(nodes / 4))
    others = nodes - first
    if others < stages - 1:
        raise ValueError(f"nodes={nodes} are too few for {stages} stages; raise --nodes or lower --stages")
    return (first, *((i + 1) * others // (stages - 1) - i * others // (stages - 1) for i in range(stages - 1)))


def swarm(seed: int, replicas: Sequence[int], microbatches: int, visits: int, limit: int) -> Setting:
    """A cluster at random; both directions of a link are alike."""
    dice, count = Random(seed), sum(replicas)
    region = [dice.randrange(REGIONS) for _ in range(count)]
    gbps, latency_s = ([[dice.uniform(*spread) for _ in range(REGIONS)] for _ in range(REGIONS)] for spread in FAR)

    def seconds(a: int, b: int, size: float) -> float:
        low, high = sorted((region[a], region[b]))
        fast, late = NEAR if low == high else (gbps[low][high], latency_s[low][high])
        return 0.0 if a == b else late + size / (fast * 1e9)

    def matrix(size: float) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(seconds(a, b, size) for b in range(count)) for a in range(count))

    return Setting(
        tuple(replicas),
        microbatches,
        visits,
        tuple(dice.choice(COMPUTE_S) for _ in range(count)),
        (limit,) * count,
        matrix(MESSAGE_BYTES),
        matrix(GRADIENT_BYTES),
    )
