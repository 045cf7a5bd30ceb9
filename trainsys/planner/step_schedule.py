"""The schedule of a config's step: one function for the planner, which predicts it, and the ranks, which run it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from trainsys.config import ModelConfig, RunConfig
from trainsys.models.geometry import forward_flops
from trainsys.planner.stages import Stages
from trainsys.schedule import Costs, Problem, Routes, Schedule, generate, verify, with_offload, with_recompute

Row = tuple[float, ...]
_AHEAD = 1  # compute actions beside which a microbatch comes back from the host


def routes_of(config: RunConfig, stages: Stages) -> Routes:
    """Who runs which microbatch of a step. Raises ValueError for a stage with more replicas than microbatches."""
    count = config.batch.global_size // config.batch.microbatch_size
    return Routes.balanced(count, stages.replicas, stages.vp, stages.folded, config.parallel.replica_shares)


def schedule_of(config: RunConfig, stages: Stages) -> Schedule:
    """What every lane does when, verified.

    Raises:
        ValueError: the schedule does not suit the layout, the microbatches or ``parallel.activations``.
    """
    parallel = config.parallel
    full = parallel.recompute == "full"
    costs = relative_costs(config.model, stages, config.batch.seq_len, full, parallel.vocabulary)
    routes = routes_of(config, stages)
    problem = Problem(routes, stages.vp, stages.folded, costs, parallel.activations, parallel.vocabulary)
    return _generated(parallel.schedule, problem, parallel.recompute == "stage", parallel.offload == "scheduled")


def relative_costs(
    model: ModelConfig, stages: Stages, seq_len: int, recompute: bool, vocabulary: str = "ends"
) -> Costs:
    """What the actions cost as far as FLOPs tell, in units of the mean F of a stage: the same numbers on every rank,
    in tuples, so that they can be a key.

    I repeats the forward's products; those of attention, which have two inputs, twice. W repeats those with weights
    (Qi et al. 2023, arXiv:2401.10241, §2). Computing layers again adds their F to I. With one barrier S makes logits
    and the gradient of its input, and T that of its weights; with two T makes both.
    """
    f_s, i_s, w_s = list[float](), list[float](), list[float]()
    for run in range(len(stages.runs)):
        blocks = stages.run_blocks(run)
        forward = sum(forward_flops(model, b, seq_len, stages.tp) for b in blocks)
        weights = sum(forward_flops(model, b, 0, stages.tp) for b in blocks)
        layers = sum(forward_flops(model, b, seq_len, stages.tp) for b in blocks if 0 <= b < model.num_layers)
        f_s.append(forward)
        i_s.append(2 * forward - weights + (layers if recompute else 0.0))
        w_s.append(weights)
    unit = sum(f_s) / stages.count
    f, i, w = (tuple(s / unit for s in row) for row in (f_s, i_s, w_s))
    b = tuple(map(sum, zip(i, w, strict=True)))
    if vocabulary == "ends":
        return Costs(f, b, i_s=i, w_s=w)
    parts = [sum(forward_flops(model, b, 0, stages.tp) for b in stages.parts_with(run)) for run in range(len(f_s))]
    s_s, t_s = map(tuple, split_passes([part / unit for part in parts], vocabulary))
    return Costs(f, b, i_s=i, w_s=w, s_s=s_s, t_s=t_s)


def split_passes(forward: Sequence[float], vocabulary: str) -> tuple[list[float], list[float]]:
    """What S and T take if their logits take `forward`: three times that together, two of them before one barrier."""
    in_s = 2 if vocabulary == "one_barrier" else 1
    return [in_s * s for s in forward], [(3 - in_s) * s for s in forward]


def weight_s(config: RunConfig, stages: Stages, backward_s: Sequence[float]) -> Row:
    """Seconds of W per run: its share of the FLOPs of `backward_s`, a backward's seconds of computing."""
    relative = relative_costs(config.model, stages, config.batch.seq_len, config.parallel.recompute != "none")
    rows: tuple[Sequence[float], ...] = (backward_s, relative.w_s or (), relative.b_s)
    return tuple(b * w / whole for b, w, whole in zip(*rows, strict=True))


def scales(config: RunConfig) -> list[float] | None:
    """Of each microbatch of a step the share of a full one's FLOPs; None where all are full."""
    model, batch = config.model, config.batch
    if not batch.seq_lens:
        return None
    blocks = range(model.num_layers + 1)
    flops = {n: n * sum(forward_flops(model, b, n) for b in blocks) for n in {batch.seq_len, *batch.seq_lens}}
    count = batch.global_size // batch.microbatch_size
    return [flops[batch.length(mb)] / flops[batch.seq_len] for mb in range(count)]


@lru_cache(maxsize=8)
def _generated(name: str, problem: Problem, recompute: bool, offload: bool) -> Schedule:
    schedule = generate(name, problem)
    early = range(problem.routes.num_stages - 1)  # the last stage's backward follows its forward: nothing is saved
    if recompute:
        schedule = with_recompute(schedule, early)
    if offload:
        schedule = with_offload(schedule, early, _AHEAD)
    if recompute or offload:
        verify(schedule)
    return schedule
