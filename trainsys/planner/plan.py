"""The answer of the planner: one scored layout, and the report that ranks them. Plain data."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from trainsys.config import ParallelConfig
from trainsys.planner.memory import Memory

EQUAL = 0.002  # step times this close (relative) count as a tie
Bound = Literal["compute", "tp", "cp", "ep", "dp", "offload", "bubble", "memory"]


@dataclass(frozen=True)
class Plan:
    """One layout and what it is predicted to cost. Seconds are per step.

    Attributes:
        layout: `parallel` in one notation, ``dp2·tp1·pp2 zero1 1f1b``.
        mfu: model FLOPs over peak FLOPs of all ranks (PaLM, arXiv:2204.02311, appendix B); recomputation not counted.
        bubble: share of the pipeline's time that its ranks spend without computing.
        compute_s: forward, backward and recomputation of the busiest stage.
        tp_s: tensor-parallel collectives of the busiest stage.
        cp_s: keys and values gathered along the sequence, on the busiest stage.
        ep_s: tokens sent to experts elsewhere and back, on the busiest stage.
        dp_s: gradient exchange, and the refresh of the peers' mirrors.
        pp_exposed_s: what the pipeline's messages add to the step.
        update_s: the optimizer.
        memory: parts of `peak_gib`, on the rank that holds most.
        offload_s: activations copied to the host and back, on the busiest stage.
        microbatch_size: sequences per microbatch.
        bound_by: the largest part of the step, or memory, when only recomputation made the layout fit.
    """

    parallel: ParallelConfig
    layout: str
    step_s: float
    tokens_per_s: float
    mfu: float
    peak_gib: float
    limit_gib: float
    bubble: float
    compute_s: float
    tp_s: float
    cp_s: float
    ep_s: float
    dp_s: float
    pp_exposed_s: float
    update_s: float
    memory: Memory
    bound_by: Bound
    offload_s: float = 0.0
    microbatch_size: int = 0

    def name(self, sized: bool) -> str:
        """The layout, and where sizes were searched (`sized`) the microbatch size, by which layouts differ too."""
        return f"{self.layout} mb{self.microbatch_size}" if sized else self.layout

    @property
    def num_ranks(self) -> int:
        """Ranks that the layout uses."""
        parallel = self.parallel
        replicas = sum(parallel.stage_replicas) or parallel.dp * parallel.pp
        return replicas * parallel.cp * parallel.tp

    @property
    def waiting_s(self) -> float:
        """Seconds of the step that the busiest stage spends waiting for others, messages included."""
        named = self.compute_s + self.tp_s + self.cp_s + self.ep_s + self.dp_s + self.update_s + self.offload_s
        return max(0.0, self.step_s - named)

    @property
    def exposed_comm(self) -> float:
        """Share of the step in which ranks only communicate."""
        return (self.tp_s + self.cp_s + self.ep_s + self.dp_s + self.pp_exposed_s) / self.step_s


@dataclass(frozen=True)
class Miss:
    """A layout that does not fit, and by how much."""

    layout: str
    peak_gib: float
    limit_gib: float
    memory: Memory

    @property
    def over_gib(self) -> float:
        return self.peak_gib - self.limit_gib


@dataclass(frozen=True)
class PlanReport:
    """The best of all legal layouts that fit, best first, and why others are not among them.

    Attributes:
        cluster: one line.
        device: where the compute rate comes from.
        model: one line.
        rejected: layouts by reason.
        nearest_miss: of those over memory, the one that needs least more.
        pareto: than each of these no layout is as fast, as small (within 5 %) and on as few ranks; fastest first.
        legal: layouts, those over memory among them.
        pruned, simulated: of those that fit, how many a bound of their step time ruled out, and how many it did not.
        any_microbatch: sizes of microbatches were searched; layouts are named with theirs.
        reduction_fast: a layout that is much faster than all of `plans` with ``parallel.reduction=fast``.
    """

    cluster: str
    device: str
    model: str
    num_ranks: int
    plans: tuple[Plan, ...]
    rejected: Counter[str]
    nearest_miss: Miss | None
    search_s: float
    pareto: tuple[Plan, ...] = ()
    legal: int = 0
    pruned: int = 0
    simulated: int = 0
    any_microbatch: bool = False
    reduction_fast: Plan | None = None

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """What ``trainsys plan --json`` prints; `top` limits the plans."""
        return {
            "cluster": self.cluster,
            "model": self.model,
            "plans": [dataclasses.asdict(plan) for plan in self.plans[:top]],
            "rejected": dict(self.rejected.most_common()),
            "search_s": self.search_s,
            "pareto": [dataclasses.asdict(plan) for plan in self.pareto],
            "legal": self.legal,
            "pruned": self.pruned,
            "simulated": self.simulated,
            "reduction_fast": dataclasses.asdict(self.reduction_fast) if self.reduction_fast else None,
        }
