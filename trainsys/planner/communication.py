"""Seconds of communication under the α-β model: tensor, context, data and pipeline parallelism, the peer's mirror.

The engine exchanges by direct messages, each rank with every other of its group at once (`Topology.direct`); only the
``fast`` reduction is the backend's ring. The volume of both is a ring's: Thakur, Rabenseifner and Gropp 2005,
"Optimization of collective communication operations in MPICH"; optimal by Patarasuk and Yuan 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainsys.comm.topology import Link, Topology
from trainsys.config import RunConfig
from trainsys.planner.groups import (
    Way,
    data_links,
    ends_links,
    exchange_links,
    expert_links,
    hop_links,
    team_links,
    whole_link,
)
from trainsys.planner.precision import Precision
from trainsys.planner.sizes import StageSizes, shared_elements, team_tokens
from trainsys.planner.stages import Stages


def all_gather_s(num_bytes: float, size: int, link: Link | None) -> float:
    """Ring all-gather of `num_bytes` in all over `size` ranks: n - 1 rounds of one n-th. Also a reduce-scatter."""
    if link is None or size < 2:
        return 0.0
    return (size - 1) * link.transfer_s(num_bytes / size)


def all_reduce_s(num_bytes: float, size: int, link: Link | None) -> float:
    """Ring all-reduce: a reduce-scatter, then an all-gather. `num_bytes` is what every rank holds."""
    return 2 * all_gather_s(num_bytes, size, link)


def slowest_link(links: tuple[Link, ...], num_bytes: float) -> Link | None:
    """Of `links` the one that takes longest for `num_bytes`; None without any."""
    return max(links, key=lambda link: link.transfer_s(num_bytes), default=None)


@dataclass(frozen=True)
class TensorCost:
    """Exposed seconds of tensor, context or expert parallelism in one microbatch, per run of layers."""

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]

    @classmethod
    def nothing(cls, stages: Stages) -> TensorCost:
        zeros = (0.0,) * len(stages.runs)
        return cls(zeros, zeros)


def boundary_bytes(config: RunConfig) -> int:
    """Bytes of a team's part of one microbatch's activation between two layers: microbatch · seq/cp · dim."""
    return team_tokens(config) * config.model.dim * Precision.of(config.train.dtype).activation


def tensor_cost(config: RunConfig, stages: Stages, topology: Topology) -> TensorCost:
    """Two all-reduces per layer forward and two backward (Shoeybi et al. 2019, arXiv:1909.08053, §3), one forward for
    the embedding and one backward for the head; recomputing a layer repeats its forward ones.

    Sequence parallelism replaces each by an all-gather and a reduce-scatter of the same volume (Korthikanti et al.
    2022, arXiv:2205.05198, §4.2.2). None is overlapped: each stands between two dependent matrix products.
    """
    if stages.tp == 1:
        return TensorCost.nothing(stages)
    worst = slowest_link(team_links(stages, topology), boundary_bytes(config))
    once = all_reduce_s(boundary_bytes(config), stages.tp, worst)
    again = 2 if config.parallel.recompute != "none" else 0
    forward = [2 * n for n in stages.runs]
    backward = [(2 + again) * n for n in stages.runs]
    forward[0] += 1
    backward[-1] += 1
    return TensorCost(tuple(once * n for n in forward), tuple(once * n for n in backward))


def expert_cost(config: RunConfig, stages: Stages, topology: Topology) -> TensorCost:
    """Exposed seconds of sending tokens to their experts and back in one microbatch, per run of layers.

    Two all-to-alls per layer forward and two backward (Lepikhin et al. 2020, arXiv:2006.16668, §3.3), each of the
    microbatch times the experts per token, evenly spread; forward also the numbers of rows. Recomputing repeats them.
    """
    if stages.ep == 1:
        return TensorCost.nothing(stages)
    model, forward, backward = config.model, [], []
    size = boundary_bytes(config) * model.experts_per_token
    again = config.parallel.recompute != "none"
    for run, layers in enumerate(stages.runs):
        worst = slowest_link(exchange_links(stages, topology, stages.host(run)), size)
        swap = all_gather_s(size, stages.ep, worst)  # an all-to-all sends as much: an n-th to each of n - 1
        once = 2 * swap + all_gather_s(8 * model.num_experts, stages.ep, worst)
        forward.append(layers * once)
        backward.append(layers * (2 * swap + again * once))
    return TensorCost(tuple(forward), tuple(backward))


def send_s(config: RunConfig, stages: Stages, topology: Topology, src: int, dst: int) -> float:
    """Seconds of one pipeline message from team `src` to team `dst`, each tp rank to its counterpart at once."""
    size = _message_bytes(config, stages)
    pairs = zip(stages.ranks_of(src), stages.ranks_of(dst), strict=True)
    return max(topology.transfer_s(a, b, size) for a, b in pairs)


def hop_s(config: RunConfig, stages: Stages, topology: Topology, stage: int, after: int) -> float:
    """Seconds of one pipeline message between two stages with equally many replicas: of the slowest replica."""
    size = _message_bytes(config, stages)
    return max(link.transfer_s(size) for link in hop_links(stages, topology, stage, after))


def _message_bytes(config: RunConfig, stages: Stages) -> float:
    """Of one rank: under sequence parallelism its own part of the sequence only."""
    return boundary_bytes(config) / (stages.tp if config.parallel.sequence_parallel else 1)


def gradient_s(config: RunConfig, stages: Stages, sizes: StageSizes, topology: Topology, stage: int) -> float:
    """Seconds of the gradient exchange of `stage` in one step: reduce-scatter, then all-gather.

    ZeRO 1 gathers updated parameters where ZeRO 0 gathers gradients: the same volume when both have the same size
    (Rajbhandari et al. 2020, arXiv:1910.02054, §7). ZeRO 2 scatters every microbatch, and ZeRO 3 also gathers the
    parameters twice for each, three volumes instead of two (§7.2.2); that they do so beside the computation is not
    counted in their favour. Under ``fast`` the backend sums everything everywhere, ZeRO 1 or not. Experts are summed
    among the replicas of their class alone. A tied embedding is also summed over first and last stage.
    """
    precision = Precision.of(config.train.dtype)
    gathered = precision.parameter if config.parallel.zero else precision.gradient
    microbatches = config.batch.global_size // config.batch.microbatch_size
    experts, seconds, way = sizes.experts[stage], 0.0, _reducing(config)
    for elements, size, links_of in (
        (sizes.held[stage] - experts, stages.copies(stage), data_links),
        (experts, stages.copies(stage) // stages.ep, expert_links),
    ):
        scatters = -(-microbatches * stages.cp // size) if config.parallel.zero >= 2 else 1
        gathers = 2 * scatters if config.parallel.zero == 3 else 1
        if way != "direct" and config.parallel.zero:
            scatters = 2
        if elements:
            part = elements * precision.gradient / size
            link = slowest_link(links_of(stages, topology, stage, way), part)
            seconds += scatters * all_gather_s(elements * precision.gradient, size, link)
            if config.parallel.zero:
                link = slowest_link(links_of(stages, topology, stage, "direct"), part)
            seconds += gathers * all_gather_s(elements * gathered, size, link)
    if sizes.tied and stages.head > 0 and stage in (0, stages.head):
        copies = stages.copies(0) + stages.copies(stages.head)
        tied = sizes.tied * precision.gradient
        seconds += all_reduce_s(tied, copies, slowest_link(ends_links(stages, topology, way), tied / copies))
    return seconds


def _reducing(config: RunConfig) -> Way:
    """How gradients are added: by direct messages, or by the backend's ring if the sum need not be canonical."""
    if config.parallel.reduction != "fast":
        return "direct"
    return "ring" if config.cluster.device.backend == "nccl" else "one ring"


def shared_s(config: RunConfig, stages: Stages, topology: Topology, stage: int) -> float:
    """Seconds to sum, once per step, the gradients of what neighbouring tp ranks share: key/value heads, where there
    are fewer of them than tp ranks.

    Each sees its own query heads alone. The team that owns a piece sums it; under ``fast`` every team sums all.
    """
    blocks, by_copies = set(stages.blocks(stage)), dict[int, int]()
    for block, copies, elements in shared_elements(config.model, stages.tp):
        if block in blocks:
            by_copies[copies] = by_copies.get(copies, 0) + elements
    precision, teams = Precision.of(config.train.dtype), stages.copies(stage)
    share = 1 if config.parallel.reduction == "fast" else teams
    if not by_copies:
        return 0.0
    worst = slowest_link(team_links(stages, topology, stage), 1e6)
    return sum(all_reduce_s(n * precision.state / share, copies, worst) for copies, n in by_copies.items())


def mirror_s(config: RunConfig, mirrored: float, topology: Topology) -> float:
    """Seconds to keep the copies of `mirrored` elements in peers' memory alive, once per step.

    The owner sends its reduced gradient and its peers repeat the optimizer step. They are on other nodes where there
    are some. Snapshots in peers' memory: Wang et al. 2023 (Gemini, SOSP), §4.
    """
    link = whole_link(topology)
    if not mirrored or link is None:
        return 0.0
    return link.transfer_s(mirrored * Precision.of(config.train.dtype).state)
