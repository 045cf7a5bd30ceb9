"""Seconds of one step: the pipeline of stages, the exchange of gradients, the update."""

from __future__ import annotations

from dataclasses import dataclass

from trainsys.perf.collective import gather_s, message_s
from trainsys.perf.head import embedding_s, head_s
from trainsys.perf.job import Job
from trainsys.perf.layer import LayerCost, layer_cost
from trainsys.perf.params import layer_params, rank_params

_HIDDEN = 0.8  # of the last backward, in which overlapped gradients can travel
_LEAST = 0.1  # of them is always exposed: the last bucket
_CONTENTION = 0.12  # of the time that collectives run beside products; Galvatron measured a slowdown of 1.126


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step on its slowest rank.

    Attributes:
        layers_s: forward, backward and recomputation of one stage's layers, tensor and context parallelism included.
        head_s: embedding, logits and loss.
        bubble_s: waiting while the pipeline fills and drains.
        messages_s: pipeline messages that computation does not hide.
        gradients_s: exposed exchange of gradients and parameters.
        update_s: the optimizer.
        layer: the parts of one layer, once.
    """

    layers_s: float
    head_s: float
    bubble_s: float
    messages_s: float
    gradients_s: float
    update_s: float
    layer: LayerCost
    slowdown: float = 1.0

    @property
    def step_s(self) -> float:
        parts = self.layers_s, self.head_s, self.bubble_s, self.messages_s, self.gradients_s, self.update_s
        return sum(parts) * self.slowdown


def step_cost(job: Job) -> StepCost:
    """Cost of `job`.

    1F1B of m microbatches over P stages with vp runs of layers each takes m stages and (P - 1)/vp of one more
    (arXiv:2104.04473, section 2.2); the stage with the logits is the slowest, and sets the pace.
    """
    d, layer, m = job.degrees, layer_cost(job), job.microbatches
    one = layer.forward_s + layer.backward_s + layer.again_s(job)
    stage = one * job.stage_layers
    head = sum(head_s(job)) + (0.0 if d.pp > 1 else sum(embedding_s(job)) + 2 * layer.reduce_s)
    head = max(0.0, head - one) if job.ends_count else head  # it stands in a layer's place
    message = 2 * _message_s(job)
    fills = (d.pp - 1) * (stage / d.vp + message)
    return StepCost(
        layers_s=m * stage,
        head_s=m * head,
        bubble_s=fills,
        messages_s=m * message * d.vp,
        gradients_s=_sharded_s(job, layer) if d.zero == 3 else _gradients_s(job, layer),
        update_s=rank_params(job).owned(job) * job.software.update / _bytes_per_s(job),
        layer=layer,
        slowdown=job.slowdown,
    )


def _message_s(job: Job) -> float:
    if job.degrees.pp == 1 or job.software.overlap_p2p:
        return 0.0
    parts = job.degrees.tp if job.software.scatter_p2p or job.sequence_parallel else 1
    return message_s(job, job.tokens * job.shape.hidden * 2 / parts)


def _gradients_s(job: Job, layer: LayerCost) -> float:
    """Reduce-scatter of gradients, all-gather of gradients or, under ZeRO, of parameters; once per step."""
    d, held = job.degrees, rank_params(job)
    back = 2 if d.zero else job.software.reduced
    exchange = sum(
        gather_s(job, params * (job.software.reduced + back), ranks, stride)
        for params, ranks, stride in held.groups(job)
    )
    if not job.software.overlap_gradients:
        return exchange
    hidden = _HIDDEN * layer.backward_s * job.shape.layers / d.pp
    return max(_LEAST * exchange, exchange - hidden)


def _sharded_s(job: Job, layer: LayerCost) -> float:
    """ZeRO-3: each layer gathered forward and backward and its gradient scattered, beside the computation.

    Exposed is what a layer's computation is too short for, what the products lose to the collectives' kernels, and the
    embedding's own gathers.
    """
    d, shape = job.degrees, job.shape
    one = layer_params(job)
    gather = sum(gather_s(job, 2 * params, ranks, stride) for params, ranks, stride in one.groups(job))
    scatter = sum(
        gather_s(job, job.software.reduced * params, ranks, stride) for params, ranks, stride in one.groups(job)
    )
    forward, backward = layer.forward_s, layer.backward_s + layer.again_s(job)
    exposed = max(0.0, gather - forward) + max(0.0, gather + scatter - backward)
    exposed += _CONTENTION * min(forward + backward, 2 * gather + scatter)
    tables = 2 * gather_s(job, 4 * shape.vocab * shape.hidden / d.tp, d.replicas, d.tp)
    times = job.microbatches if d.pp == 1 else 1  # a pipeline keeps its weights gathered
    return exposed * times * shape.layers / d.pp + tables


def _bytes_per_s(job: Job) -> float:
    return job.device.memory_gbps * job.device.memory_reached * 1e9
