"""What is given: nodes and links that all differ, stages of unequal numbers of replicas, how much is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil

from trainsys.comm.topology import Topology

MOST_STAGES = 16  # the stage sets that a microbatch may visit are listed: C(15, 7) = 6,435 of them at most

Stages = tuple[tuple[int, ...], ...]  # nodes by stage
Paths = tuple[tuple[int, ...], ...]  # nodes by microbatch, in the order of its visits; the first is its home


@dataclass(frozen=True)
class Setting:
    """One step to be planned. Stage 0 has the embedding, its layers and the head: every microbatch begins and ends
    on its *home*, a node of stage 0, and in between visits ``visits - 1`` of the other stages, one node of each.

    Attributes:
        replicas: nodes of each stage, stage 0 first.
        microbatches: m, of the whole step.
        visits: L, stages that a microbatch visits, stage 0 included.
        compute_s: ``[node]``: seconds of one microbatch's forward through one stage.
        limit: ``[node]``: microbatches it can hold at once, from their forward's start to their backward's end.
        send_s: ``[node][node]``: seconds of one transfer, activations or gradients of one microbatch.
        reduce_s: ``[node][node]``: seconds of a stage's gradients over this link, once; see `reduction_s`.
        stage_limit: ``[stage]``: microbatches that may visit it in a step; empty: equal shares per replica, rounded up.
            It is what makes every stage see its part of the batch.
        max_skip: stages that may be left out in a row.
        max_swaps: how often a microbatch may visit the stage just below one that it has visited already.
        first, head, backward: work of stage 0's forward and of the head as shares of a stage's forward; of a
            backward over its forward.
    """

    replicas: tuple[int, ...]
    microbatches: int
    visits: int
    compute_s: tuple[float, ...]
    limit: tuple[int, ...]
    send_s: tuple[tuple[float, ...], ...]
    reduce_s: tuple[tuple[float, ...], ...] = ()
    stage_limit: tuple[int, ...] = ()
    max_skip: int = 4
    max_swaps: int = 2
    first: float = 1.0
    head: float = 0.25
    backward: float = 2.0

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_nodes(self)
        _check_limits(self)

    @property
    def num_nodes(self) -> int:
        return len(self.compute_s)

    @property
    def num_stages(self) -> int:
        return len(self.replicas)

    @cached_property
    def capacity(self) -> tuple[int, ...]:
        """`stage_limit`, or the equal shares that it stands for; stage 0 takes all."""
        m, others = self.microbatches, self.replicas[1:]
        if self.stage_limit:
            return (m, *(min(m, limit) for limit in self.stage_limit[1:]))
        return (m, *_shares(m * (self.visits - 1), others, m))

    def home(self, stages: Stages, microbatch: int) -> int:
        """The node of stage 0 that has the microbatch's data: in turn."""
        return stages[0][microbatch % len(stages[0])]

    def reduction_s(self, stages: Stages) -> float:
        """Seconds of the stages' gradient all-reduces, side by side: each a ring over its slowest link."""
        if not self.reduce_s:
            return 0.0
        slowest = [max((self.reduce_s[a][b] for a in nodes for b in nodes if a != b), default=0.0) for nodes in stages]
        # each link carries 2 (n - 1) / n of the gradients (Patarasuk and Yuan 2009)
        return max(2 * (len(nodes) - 1) / len(nodes) * s for nodes, s in zip(stages, slowest, strict=True))


def without_skips(setting: Setting) -> Setting:
    """The same nodes, every microbatch on all stages in order."""
    everywhere = (setting.microbatches,) * setting.num_stages
    return replace(setting, visits=setting.num_stages, stage_limit=everywhere, max_swaps=0)


def on_topology(
    topology: Topology,
    replicas: Sequence[int],
    microbatches: int,
    visits: int,
    compute_s: float | Sequence[float],
    limit: int,
    message_bytes: float,
    gradient_bytes: float = 0.0,
) -> Setting:
    """The setting of a cluster whose every rank is a node.

    Args:
        compute_s: seconds of a stage's forward, of all nodes or of each.
        message_bytes: of one microbatch's activations between stages.
        gradient_bytes: of one stage's gradients.

    Raises:
        ValueError: as `Setting`.
    """
    ranks = range(topology.num_ranks)
    each = tuple(compute_s) if isinstance(compute_s, Sequence) else (compute_s,) * len(ranks)
    return Setting(
        tuple(replicas),
        microbatches,
        visits,
        each,
        (limit,) * len(ranks),
        tuple(tuple(topology.transfer_s(a, b, message_bytes) for b in ranks) for a in ranks),
        tuple(tuple(topology.transfer_s(a, b, gradient_bytes) for b in ranks) for a in ranks) if gradient_bytes else (),
    )


def _shares(total: int, replicas: Sequence[int], most: int) -> tuple[int, ...]:
    """`total` in proportion to `replicas`, each rounded up, at most `most`; what that cuts off goes to the others."""
    shares, left, rest = dict[int, int](), Fraction(total), sum(replicas)
    for stage in sorted(range(len(replicas)), key=lambda s: -replicas[s]):
        exact = min(Fraction(most), left * replicas[stage] / rest)
        shares[stage] = ceil(exact)
        left, rest = left - exact, rest - replicas[stage]
    return tuple(shares[stage] for stage in range(len(replicas)))


def _check_sizes(setting: Setting) -> None:
    stages, m, visits = setting.num_stages, setting.microbatches, setting.visits
    if not 2 <= stages <= MOST_STAGES:
        raise ValueError(f"replicas={setting.replicas} are {stages} stages; give 2 to {MOST_STAGES}")
    if min(setting.replicas) < 1:
        raise ValueError(f"replicas={setting.replicas}: every stage needs at least 1")
    if not 2 <= visits <= stages:
        raise ValueError(f"visits={visits} must be 2 to {stages}, the number of stages")
    if m < setting.replicas[0]:
        raise ValueError(
            f"microbatches={m} leave some of the {setting.replicas[0]} nodes of stage 0 without one; "
            f"raise microbatches to {setting.replicas[0]} or lower replicas[0]"
        )
    if setting.max_skip < 0 or setting.max_swaps < 0:
        raise ValueError(f"max_skip={setting.max_skip} and max_swaps={setting.max_swaps} must not be negative")
    least = -(-(stages - visits) // visits)  # S - L stages left out lie in L gaps
    if setting.max_skip < least:
        raise ValueError(
            f"max_skip={setting.max_skip} is too low to visit {visits} of {stages} stages; "
            f"raise max_skip to {least} or visits"
        )


def _check_nodes(setting: Setting) -> None:
    nodes = setting.num_nodes
    if nodes != sum(setting.replicas):
        raise ValueError(
            f"compute_s names {nodes} nodes but replicas={setting.replicas} need {sum(setting.replicas)}; "
            "change one of them"
        )
    if len(setting.limit) != nodes or min(setting.limit) < 1:
        raise ValueError(f"limit={setting.limit} must have a number of at least 1 for each of {nodes} nodes")
    for name, matrix in (("send_s", setting.send_s), ("reduce_s", setting.reduce_s)):
        if matrix and (len(matrix) != nodes or any(len(row) != nodes for row in matrix)):
            raise ValueError(f"{name} is {len(matrix)} x {len(matrix[0])}; it must be {nodes} x {nodes}")
        for a, row in enumerate(matrix):
            for b, s in enumerate(row):
                if a != b and not 0 <= s < float("inf"):
                    raise ValueError(f"{name} from node {a} to {b} is {s:g} s; it must be 0 or more and finite")
    if not setting.send_s:
        raise ValueError(f"send_s is empty; give seconds between each two of {nodes} nodes")
    if not all(0 < s < float("inf") for s in setting.compute_s):
        raise ValueError(f"compute_s={setting.compute_s} must be positive seconds")
    for name in ("first", "head", "backward"):
        if not 0 <= getattr(setting, name) < float("inf"):
            raise ValueError(f"{name}={getattr(setting, name)} is a share of a stage's forward; it must be 0 or more")


def _check_limits(setting: Setting) -> None:
    if setting.stage_limit and len(setting.stage_limit) != setting.num_stages:
        raise ValueError(
            f"stage_limit={setting.stage_limit} must have a number for each of {setting.num_stages} stages"
        )
    if setting.stage_limit and setting.stage_limit[0] < setting.microbatches:
        raise ValueError(
            f"stage_limit[0]={setting.stage_limit[0]}: all {setting.microbatches} microbatches visit stage 0; raise it"
        )
    wanted, room = setting.microbatches * (setting.visits - 1), sum(setting.capacity[1:])
    if room < wanted:
        raise ValueError(
            f"stage_limit={setting.stage_limit} has room for {room} visits beyond stage 0 but {setting.microbatches} "
            f"microbatches make {wanted}; raise stage_limit or lower visits={setting.visits}"
        )
