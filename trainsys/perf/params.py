"""Parameters that one rank computes with, and which ranks hold the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainsys.perf.job import Job


@dataclass(frozen=True)
class Params:
    """Counts on one rank: those that all replicas hold, and those of its experts, which 1/ep of them hold."""

    shared: float
    experts: float = 0.0

    @property
    def total(self) -> float:
        return self.shared + self.experts

    def owned(self, job: Job) -> float:
        """What this rank updates: all of it, or under ZeRO its part."""
        if not job.degrees.zero:
            return self.total
        return sum(params / ranks for params, ranks, _ in self.groups(job))

    def groups(self, job: Job) -> Iterator[tuple[float, int, int]]:
        """(parameters, ranks that hold the same, distance between them)."""
        d = job.degrees
        yield self.shared, d.replicas, d.tp
        if self.experts:
            yield self.experts, max(1, d.replicas // d.ep), d.tp * d.ep


def layer_params(job: Job) -> Params:
    """Of one layer on one rank; with experts where the model has them."""
    shape, d = job.shape, job.degrees
    if not shape.experts:
        return Params((shape.attention_params + shape.mlp_params) / d.tp)
    one = (3 if shape.gated else 2) * shape.hidden * shape.expert_ffn / d.tp
    shared = shape.attention_params / d.tp + shape.hidden * shape.experts + one * shape.shared_experts
    return Params(shared, one * max(1, shape.experts // d.ep))


def rank_params(job: Job) -> Params:
    """Of the rank that holds most: a stage's layers, and the table that it embeds with."""
    shape, d = job.shape, job.degrees
    tables = 1 if shape.tied or d.pp > 1 else 2
    layer, layers = layer_params(job), -(-shape.layers // d.pp)
    return Params(layer.shared * layers + tables * shape.vocab * shape.hidden / d.tp, layer.experts * layers)
