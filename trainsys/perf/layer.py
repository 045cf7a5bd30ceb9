"""Seconds of one transformer layer on one rank for one microbatch: products, attention, and what only moves memory."""

from __future__ import annotations

from dataclasses import dataclass

from trainsys.perf.collective import all_reduce_s, gather_s
from trainsys.perf.experts import exchange_s, expert_products, expert_streams
from trainsys.perf.gemm import gemm_s, weight_gradient_s
from trainsys.perf.job import Job

_BACKWARD = 1.6  # bytes that a streaming kernel's backward moves, by its forward's
_SHORT_HEAD = 0.85  # of a fused kernel's rate at head dimensions below 128 (arXiv:2307.08691, figures 4 to 6)


@dataclass(frozen=True)
class LayerCost:
    """Seconds, forward and backward; communication and recomputation are not in them.

    Attributes:
        attention_s, mlp_s: matrix products with weights, of the MLP's or the experts'.
        core_s: attention between queries, keys and values.
        norm_s, rotary_s, activation_s: what only moves memory: norms and residuals; what prepares queries and keys;
            the MLP's activation, and sorting tokens for their experts.
        reduce_s: one tensor-parallel all-reduce; there are two in each direction.
        context_s: keys and values of the other cp ranks, forward.
        experts_s: tokens sent to their experts and back, in each direction.
        host_s: waiting for launches, in each direction.
    """

    attention_s: tuple[float, float]
    mlp_s: tuple[float, float]
    core_s: tuple[float, float]
    norm_s: tuple[float, float]
    rotary_s: tuple[float, float]
    activation_s: tuple[float, float]
    reduce_s: float
    context_s: float
    experts_s: float
    host_s: float = 0.0

    @property
    def product_s(self) -> tuple[float, float]:
        """Matrix products with weights."""
        return self.attention_s[0] + self.mlp_s[0], self.attention_s[1] + self.mlp_s[1]

    @property
    def stream_s(self) -> tuple[float, float]:
        """What only moves memory."""
        forward, backward = (self.norm_s[i] + self.rotary_s[i] + self.activation_s[i] for i in (0, 1))
        return forward, backward

    @property
    def forward_s(self) -> float:
        return self._local_s(0) + 2 * self.reduce_s + self.context_s + self.experts_s

    @property
    def backward_s(self) -> float:
        return self._local_s(1) + 2 * self.reduce_s + 2 * self.context_s + self.experts_s

    def _local_s(self, direction: int) -> float:
        return self.product_s[direction] + self.core_s[direction] + self.stream_s[direction] + self.host_s

    def again_s(self, job: Job) -> float:
        """Seconds of recomputation in the backward pass."""
        if job.recompute == "full":
            return self.forward_s
        if job.recompute == "none":
            return 0.0
        return self.core_s[0] if job.software.selective == "core" else 0.5 * self.product_s[0] + self.stream_s[0]


def layer_cost(job: Job) -> LayerCost:
    """The parts of one layer: with experts where the model has them; leading dense layers count as the others."""
    shape, tp = job.shape, job.degrees.tp
    keys = 2 * job.tokens * shape.kv_heads * shape.head_dim / tp * 2
    context = gather_s(job, keys * job.degrees.cp, job.degrees.cp, tp)
    norms, rotary, activations = _streams(job)
    return LayerCost(
        attention_s=_dense(job, _attention_matrices(job)),
        mlp_s=expert_products(job) if shape.experts else _dense(job, _mlp_matrices(job)),
        core_s=_fused(job) if job.software.attention != "unfused" else _unfused(job),
        norm_s=norms,
        rotary_s=rotary,
        activation_s=activations,
        reduce_s=all_reduce_s(job, job.tokens * shape.hidden * 2, tp),
        context_s=0.0 if job.software.overlap_context else context,
        experts_s=exchange_s(job) if shape.experts else 0.0,
        host_s=job.software.host_s,
    )


def _attention_matrices(job: Job) -> list[tuple[int, int]]:
    """[outputs, inputs] of the matrices on one tp rank."""
    shape, tp = job.shape, job.degrees.tp
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim // tp
    return [(qkv, shape.hidden), (shape.hidden, shape.heads * shape.head_dim // tp)]


def _mlp_matrices(job: Job) -> list[tuple[int, int]]:
    shape, inner = job.shape, job.shape.ffn // job.degrees.tp
    return [(inner * (2 if shape.gated else 1), shape.hidden), (shape.hidden, inner)]


def _dense(job: Job, matrices: list[tuple[int, int]]) -> tuple[float, float]:
    device = job.device
    forward = backward = 0.0
    for n, k in matrices:
        forward += gemm_s(device, job.tokens, n, k, job.precision)
        backward += gemm_s(device, job.tokens, k, n, job.precision)
        backward += weight_gradient_s(job, n, k, job.precision)
        if job.precision in ("fp8", "mxfp8"):  # casts: 2 bytes read and 1 written, backward both ways round
            forward += device.stream_s(3 * job.tokens * k)
            backward += device.stream_s(4 * job.tokens * n)
    return forward, backward


def _fused(job: Job) -> tuple[float, float]:
    """A fused causal kernel: half of the scores; backward 2.5 times the forward's FLOPs (arXiv:2307.08691)."""
    shape = job.shape
    rates = job.device.attention_flops(job.software.attention)
    short = 1.0 if shape.head_dim >= 128 else _SHORT_HEAD
    flops = 2 * job.tokens * job.seq * shape.heads * shape.head_dim / job.degrees.tp
    launches = 3 * job.device.launch_s
    return flops / (rates[0] * short) + launches, 2.5 * flops / (rates[1] * short) + launches


def _unfused(job: Job) -> tuple[float, float]:
    """Scores in memory: two batched products, softmax (4 bytes per score) and dropout (5), none of them halved."""
    shape, device = job.shape, job.device
    local = job.seq // job.degrees.cp
    count = job.microbatch * shape.heads // job.degrees.tp
    row = 2 * shape.head_dim
    products = gemm_s(device, local, job.seq, shape.head_dim, job.precision, count, row)
    products += gemm_s(device, local, shape.head_dim, job.seq, job.precision, count, row)
    scores = count * local * job.seq
    forward = products + device.stream_s(4 * scores) + device.stream_s(5 * scores)
    return forward, 2 * products + device.stream_s(5 * scores) + device.stream_s(6 * scores)


def _streams(job: Job) -> list[tuple[float, float]]:
    """Two norms and two residuals; what prepares q, k and v; the activation."""
    shape, tp, traits = job.shape, job.degrees.tp, job.software
    apart = job.tokens // tp if job.sequence_parallel else job.tokens
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim // tp
    norms = [traits.norm * apart * shape.hidden] * 2 + [traits.residual * apart * shape.hidden] * 2
    inner = expert_streams(job) if shape.experts else [traits.activation * job.tokens * shape.ffn / tp]
    return [
        (sum(map(job.device.stream_s, moved)), sum(job.device.stream_s(_BACKWARD * n) for n in moved))
        for moved in (norms, [traits.rotary * job.tokens * qkv], inner)
    ]
