"""Seconds of a mixture-of-experts MLP on one rank: routing, grouped products, and the way to the experts and back.

Tokens are taken to be spread evenly, and none dropped. Each rank of an ep group holds experts / ep of them, and as many
rows come as leave: k copies of its own tokens (Lepikhin et al. 2020, arXiv:2006.16668, section 3.3).
"""

from __future__ import annotations

from trainsys.perf.collective import gather_s
from trainsys.perf.gemm import gemm_s
from trainsys.perf.job import Job

# bytes per element of a token's copy: gathered, sorted, cast on its way; as many back. With bridge's rows in view
_PERMUTE = 10.0
_SWAP = 0.8  # of a ring's bandwidth that an all-to-all reaches: rows all2all of benchmarks/published/links.csv


def expert_products(job: Job) -> tuple[float, float]:
    """Router, experts and shared experts, forward and backward; tp cuts each expert's inner width."""
    shape, device, add = job.shape, job.device, job.software.accumulate
    width = -(-shape.expert_ffn // job.degrees.tp)
    here = max(1, shape.experts // job.degrees.ep)
    rows = max(1, round(job.tokens * shape.topk / here))
    up = 2 if shape.gated else 1
    matrices = [(job.tokens, shape.experts, shape.hidden, 1)]
    for count, m, inner in ((here, rows, width), (1, job.tokens, shape.shared_experts * width)):
        if inner:
            matrices += [(m, up * inner, shape.hidden, count), (m, shape.hidden, inner, count)]
    forward = backward = 0.0
    for m, n, k, count in matrices:
        forward += count * gemm_s(device, m, n, k, job.precision)
        backward += count * gemm_s(device, m, k, n, job.precision)
        backward += count * gemm_s(device, n, k, m, job.precision, add_bytes=add)
    return forward, backward


def expert_streams(job: Job) -> list[float]:
    """Bytes of the activation, and of gathering the tokens' copies and summing them again."""
    shape = job.shape
    copies = job.tokens * shape.topk
    inner = copies * shape.expert_ffn + job.tokens * shape.shared_experts * shape.expert_ffn
    return [
        job.software.activation * inner / job.degrees.tp,
        _PERMUTE * copies * shape.hidden,
        _PERMUTE * copies * shape.hidden,
    ]


def exchange_s(job: Job) -> float:
    """To the experts and back: an all-to-all sends as much as an all-gather of what one rank has."""
    stride = job.degrees.tp
    return 2 / _SWAP * gather_s(job, job.tokens * job.shape.topk * job.shape.hidden * 2, job.degrees.ep, stride)
