"""Seconds of collectives under the α-β model: rings inside a node, and through all of its adapters between nodes.

A ring over g ranks moves (g - 1)/g of the data past each (Thakur, Rabenseifner and Gropp 2005). Of a group that crosses
nodes, the r ranks in a node use r of its adapters' shares: a ring sees them all, a pair of ranks one.
"""

from __future__ import annotations

from trainsys.perf.job import Job

_HOP_S = 2.5e-6  # per rank of a ring inside a node; fitted to vTrain's tables at 1 MiB


def gather_s(job: Job, num_bytes: float, ranks: int, stride: int = 1) -> float:
    """All-gather of `num_bytes` in all over `ranks` that lie `stride` apart; also a reduce-scatter."""
    if ranks < 2:
        return 0.0
    inside = max(1, min(ranks, job.node_size // stride))
    nodes = -(-ranks // inside)
    rates = [job.device.ring_gbps(inside)] if inside > 1 else []
    latency = job.device.latency_s + inside * _HOP_S
    if nodes > 1:
        rates.append(_share_gbps(job) * inside)
        latency += job.device.latency_s + nodes * job.fabric.latency_s
    return (ranks - 1) / ranks * num_bytes / (min(rates) * 1e9) + latency


def all_reduce_s(job: Job, num_bytes: float, ranks: int, stride: int = 1) -> float:
    """Reduce-scatter, then all-gather."""
    return 2 * gather_s(job, num_bytes, ranks, stride)


def message_s(job: Job, num_bytes: float) -> float:
    """From a rank to its neighbour in the pipeline, all pairs at once: through the network where there is one."""
    if job.degrees.devices > job.node_size:
        return num_bytes / (_share_gbps(job) * 1e9) + job.device.latency_s + job.fabric.latency_s
    return num_bytes / (job.device.ring_gbps(2) * 1e9) + job.device.latency_s


def _share_gbps(job: Job) -> float:
    """One rank's share of its node's adapters, GB/s, when all of the node's ranks use them."""
    return job.fabric.nic_gbps * job.fabric.reached / job.node_size
