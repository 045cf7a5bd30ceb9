"""Peak memory of the fullest rank, GiB: states, activations of microbatches in flight, logits, what is always there.

Activations per layer follow Korthikanti et al. 2022 (arXiv:2205.05198, section 4), written for any MLP and for fused
attention. A stage s of P keeps min(m, P - s) microbatches under 1F1B, so the first stage holds most activations, and
the last one the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainsys.perf.job import Job
from trainsys.perf.params import Params, layer_params

GIB = 2**30


@dataclass(frozen=True)
class MemoryCost:
    """GiB on one rank.

    Attributes:
        weights: parameters, gradients and optimizer state.
        activations: of all microbatches in flight.
        working: of the layer or the loss being computed, and gathered weights.
        fixed: context, communicators, and what the allocator cannot use.
    """

    weights: float
    activations: float
    working: float
    fixed: float

    @property
    def total_gib(self) -> float:
        return self.weights + self.activations + self.working + self.fixed


def memory_cost(job: Job) -> MemoryCost:
    """Of the rank of the first or the last stage, whichever holds more."""
    ends = (0, job.degrees.pp - 1)
    return max((_of_stage(job, stage) for stage in dict.fromkeys(ends)), key=lambda cost: cost.total_gib)


def _of_stage(job: Job, stage: int) -> MemoryCost:
    d, traits = job.degrees, job.software
    kept = _kept(job)
    flight = _in_flight(job, stage)
    layers = -(-job.shape.layers // d.pp)
    activations = flight * layers * kept + job.tokens * job.shape.hidden * 2 * flight
    working = _full(job) if job.recompute == "full" else 0.0
    if job.recompute == "selective" and traits.attention == "unfused":
        working = _scores(job)
    if stage == d.pp - 1:
        working = max(working, job.tokens * job.shape.vocab / d.tp * traits.logits_kept)
    if d.zero == 3 and d.pp == 1:
        working += 2 * 2 * layer_params(job).total + 2 * traits.reduced * layer_params(job).total
    return MemoryCost(
        weights=_states(job, stage, layers) / GIB,
        activations=activations * (1 + traits.slack) / GIB,
        working=working * (1 + traits.slack) / GIB,
        fixed=traits.fixed_gib,
    )


def _states(job: Job, stage: int, layers: int) -> float:
    """Bytes of parameters, gradients and optimizer state, as ZeRO spreads them."""
    shape, d, traits = job.shape, job.degrees, job.software
    first, last = stage == 0, stage == d.pp - 1
    tables = 1 if first != last or (first and shape.tied) else 2 if first else 0
    layer = layer_params(job)
    held = Params(layer.shared * layers + tables * shape.vocab * shape.hidden / d.tp, layer.experts * layers)
    whole = held.total
    owned = sum(params / ranks for params, ranks, _ in held.groups(job))
    if d.zero == 0:
        return whole * (traits.weight_bytes + traits.gradient_bytes + traits.state_bytes)
    if d.zero == 3:  # with a pipeline the weights stay gathered, and gradients wait for the last microbatch
        gathered = whole * (2 + traits.reduced) if d.pp > 1 else 0.0
        return gathered + owned * (traits.weight_bytes + traits.gradient_bytes + traits.state_bytes)
    gradients = whole if d.zero == 1 else owned
    return whole * traits.weight_bytes + gradients * traits.gradient_bytes + owned * traits.state_bytes


def _in_flight(job: Job, stage: int) -> float:
    """Microbatches whose activations a stage keeps, in units of its whole run of layers."""
    d = job.degrees
    if d.pp == 1:
        return 1
    if d.vp == 1:
        return min(job.microbatches, d.pp - stage)
    most = 2 * (d.pp - stage - 1) + (d.vp - 1) * d.pp + 1
    return min(job.microbatches * d.vp, most) / d.vp


def _kept(job: Job) -> float:
    """Bytes that one layer keeps of one microbatch until its backward."""
    hidden = job.tokens * job.shape.hidden
    if job.recompute == "full":
        return 2 * hidden / (job.degrees.tp if job.sequence_parallel else 1)
    full = _full(job)
    if job.recompute == "none":
        return full
    if job.software.selective == "core":
        return full - (_scores(job) if job.software.attention == "unfused" else 0.0)
    return 0.45 * full  # every second product's output, the core's output and the norms' inputs


def _full(job: Job) -> float:
    """Bytes of all that a layer's backward needs: inputs of norms and products, q, k, v, the activation's, masks."""
    shape, d = job.shape, job.degrees
    tokens, hidden, tp = job.tokens, job.shape.hidden, d.tp
    apart = tp if job.sequence_parallel else 1
    norms = 4 * tokens * hidden / apart  # inputs of two norms
    inputs = 4 * tokens * hidden / apart  # of the attention's and the MLP's first products
    masks = 2 * tokens * hidden / apart if job.software.attention == "unfused" else 0.0
    heads = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim  # q, k, v and the core's output
    inner = _inner(job)
    core = 2 * tokens * heads / tp
    scores = _scores(job) if job.software.attention == "unfused" else 0.0
    return norms + inputs + masks + core + inner + scores


def _inner(job: Job) -> float:
    """Bytes that the MLP keeps: its inner values before and after the activation."""
    shape = job.shape
    widths = 2 + shape.gated + (shape.gated and job.software.eager_activation)
    if not shape.experts:
        return 2 * widths * job.tokens * shape.ffn / job.degrees.tp
    copies = job.tokens * shape.topk
    return 2 * widths * copies * shape.expert_ffn / job.degrees.tp + 2 * 2 * copies * shape.hidden


def _scores(job: Job) -> float:
    """Bytes of unfused attention's scores: softmax output 2, dropout output 2, mask 1 (arXiv:2205.05198, eq. 2)."""
    local = job.seq // job.degrees.cp
    return 5 * job.microbatch * job.shape.heads / job.degrees.tp * local * job.seq
