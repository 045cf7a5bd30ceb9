"""Seconds of what stands before and behind the layers: the embedding, and logits with their loss."""

from __future__ import annotations

from trainsys.perf.gemm import gemm_s, weight_gradient_s
from trainsys.perf.job import Job


def head_s(job: Job) -> tuple[float, float]:
    """Logits and loss, forward and backward. Recipes for fp8 leave them in 16 bits."""
    device, tokens, hidden, traits = job.device, job.tokens, job.shape.hidden, job.software
    vocab, half = job.shape.vocab // job.degrees.tp, "fp16" if job.precision == "fp16" else "bf16"
    forward = gemm_s(device, tokens, vocab, hidden, half) + device.stream_s(traits.logits * tokens * vocab)
    backward = gemm_s(device, tokens, hidden, vocab, half)
    backward += weight_gradient_s(job, vocab, hidden, half)
    return forward, backward + device.stream_s(14 * tokens * vocab)


def embedding_s(job: Job) -> tuple[float, float]:
    """Rows looked up and, backward, added."""
    once = job.device.stream_s(12 * job.tokens * job.shape.hidden)
    return once, once
