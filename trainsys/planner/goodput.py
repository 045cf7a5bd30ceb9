"""What a layout earns where nodes fail and come back: the layouts that follow it, and expected tokens per second.

Nodes fail independently, each ``cluster.node_mtbf_hours`` after it came in the mean, and come back after
``cluster.node_repair_hours``: the number of lost nodes is a birth-death chain, whose shares of time have a closed form
(Kleinrock 1975, "Queueing Systems" I, §3.2). In each state the layout runs that the elastic manager would choose, by
the same call, and every change of state costs a pause: noticing it, the step that was under way, the switch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig, RunConfig
from trainsys.models.geometry import split_layers, tensors
from trainsys.planner.choose import choose
from trainsys.planner.device import Rate, rate
from trainsys.planner.plan import Plan
from trainsys.planner.precision import Precision
from trainsys.planner.predict import predict
from trainsys.planner.stages import notation
from trainsys.planner.switch import switch
from trainsys.space.build import build_layout
from trainsys.space.coverage import LostError
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space

_PIECES = 64  # of a rank, at least, when a switch is costed: more would only say the same more slowly
DEPTH = 2  # lost nodes looked at; that more are lost at once is counted as standing still


@dataclass(frozen=True)
class Successor:
    """The layout after nodes have gone or come.

    Attributes:
        change: nodes less or more than planned for.
        share: of the nodes, those whose loss leads here.
        layout: empty where training stops: `why` says so.
        received_gib, switch_s: of the rank that takes longest: `Switch`.
        pause_s: from the failure until training is where it was.
    """

    change: int
    share: float
    layout: str
    step_s: float
    tokens_per_s: float
    received_gib: float
    switch_s: float
    pause_s: float
    why: str = ""


@dataclass(frozen=True)
class Outlook:
    """A layout under failures.

    Attributes:
        successors: by change, most likely first.
        goodput: expected tokens/s; without a rate of failures those of the layout itself.
        availability: goodput over the tokens/s of a cluster that never fails.
    """

    layout: str
    successors: tuple[Successor, ...]
    goodput: float
    availability: float


@dataclass(frozen=True)
class _State:
    parallel: ParallelConfig
    layout: Layout
    nodes: Mapping[int, int]  # living rank -> node


def by_goodput(config: RunConfig, plans: list[Plan]) -> list[tuple[Plan, Outlook]]:
    """The plans with their outlooks, the highest goodput first."""
    looks = [(plan, outlook(config, plan.parallel)) for plan in plans]
    return sorted(looks, key=lambda pair: -pair[1].goodput)


def outlook(config: RunConfig, parallel: ParallelConfig, grow: int = 1, depth: int = DEPTH) -> Outlook:
    """What follows `parallel` when nodes are lost one by one, or `grow` more are there, and what that earns.

    Args:
        depth: most nodes lost at once. Which ones is averaged over for the first; the later ones are lost from where
            most losses lead.
    """
    layers = parallel.stage_layers or split_layers(config.model.num_layers, parallel.pp * parallel.vp)
    parallel = dataclasses.replace(parallel, stage_layers=tuple(layers))
    config = dataclasses.replace(config, parallel=parallel)
    chain = _Chain(config)
    state, found = chain.first, list[Successor]()
    for lost in range(1, min(depth, config.cluster.nodes - 1) + 1):
        outcomes = chain.losses(state, -lost)
        found += [successor for successor, _ in outcomes]
        after = outcomes[0][1]
        if after is None:
            break
        state = after
    goodput, own = chain.goodput(found), chain.tokens_per_s(predict(config, parallel, chain.rate).step_s)
    if grow:
        found += [chain.gain(grow)]
    return Outlook(notation(parallel), tuple(found), goodput, goodput / own)


class _Chain:
    """The states of one planned layout."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.space = config, Space(tuple(tensors(config.model)))
        self.topology = Topology.from_config(config.cluster)
        self.rate: Rate = rate(config.cluster, self.topology.num_ranks)
        nodes = {r: self.topology.node_of(r) for r in range(self.topology.num_ranks)}
        parallel, chunk = config.parallel, max(config.elastic.chunk, self.space.numel // (_PIECES * len(nodes)))
        layout = build_layout(parallel, parallel.stage_layers, sorted(nodes), chunk, nodes.__getitem__)
        self.first = _State(parallel, layout, nodes)

    def tokens_per_s(self, step_s: float) -> float:
        return self.config.batch.global_size * self.config.batch.seq_len / step_s

    def losses(self, state: _State, change: int) -> list[tuple[Successor, _State | None]]:
        """What the loss of each node leads to, the most frequent first; equal ones once."""
        by_kind: dict[tuple[int, ...], list[int]] = {}
        for node in sorted(set(state.nodes.values())):
            living = {r for r, n in state.nodes.items() if n != node}
            whole = tuple(sum(living.issuperset(team) for team in stage.teams) for stage in state.layout.stages)
            by_kind.setdefault(whole, []).append(node)
        total = sum(map(len, by_kind.values()))
        groups = sorted(by_kind.values(), key=lambda nodes: (-len(nodes), nodes))
        return [self._lose(state, group[0], change, len(group) / total) for group in groups]

    def _lose(self, state: _State, node: int, change: int, share: float) -> tuple[Successor, _State | None]:
        nodes = {r: n for r, n in state.nodes.items() if n != node}
        redone_s = predict(self.config, state.parallel, self.rate).step_s / 2  # of the step under way, half in the mean
        noticed_s = self.config.elastic.heartbeat_limit_s
        try:
            return self._change(self.config, self.topology, state, nodes, change, share, noticed_s + redone_s)
        except (ValueError, LostError) as error:
            return Successor(change, share, "", 0.0, 0.0, 0.0, 0.0, 0.0, str(error)), None

    def gain(self, count: int) -> Successor:
        """What `count` more nodes lead to."""
        cluster = self.config.cluster
        wider = dataclasses.replace(cluster, nodes=cluster.nodes + count)
        topology = Topology.from_config(wider)
        nodes = {r: topology.node_of(r) for r in range(topology.num_ranks)}
        config = dataclasses.replace(self.config, cluster=wider)
        return self._change(config, topology, self.first, nodes, count, 1.0, 0.0)[0]

    def _change(
        self, config: RunConfig, topology: Topology, state: _State, nodes: Mapping[int, int], change: int,
        share: float, lost_s: float,
    ) -> tuple[Successor, _State]:  # fmt: skip
        parallel, layout = choose(config, state.layout, state.parallel, nodes, self.rate)
        alive = [r for r in state.layout.ranks if r in nodes]
        cost = switch(self.space, state.layout, layout, alive, topology, Precision.of(config.train.dtype).state)
        step_s = predict(config, parallel, self.rate).step_s
        successor = Successor(
            change, share, notation(parallel), step_s, self.tokens_per_s(step_s), cost.received_gib, cost.seconds,
            lost_s + cost.seconds,
        )  # fmt: skip
        return successor, _State(parallel, layout, nodes)

    def goodput(self, successors: list[Successor]) -> float:
        """Expected tokens/s over the states, less what is not trained while the layout changes."""
        first = self.tokens_per_s(predict(self.config, self.config.parallel, self.rate).step_s)
        cluster = self.config.cluster
        if not cluster.node_mtbf_hours:
            return first
        depth = max((-s.change for s in successors), default=0)
        fail = [(cluster.nodes - k) / cluster.node_mtbf_hours / 3600 for k in range(cluster.nodes + 1)]
        repair = [k / cluster.node_repair_hours / 3600 for k in range(cluster.nodes + 1)]
        weights = [prod(fail[i] / repair[i + 1] for i in range(k)) for k in range(cluster.nodes + 1)]
        earned = weights[0] * first
        before = first
        for k in range(1, depth + 1):
            here = [s for s in successors if s.change == -k]
            rate_here = sum(s.share * s.tokens_per_s for s in here)
            crossings = weights[k - 1] * fail[k - 1]  # failures into this state, and as many repairs out of it
            paused = sum(s.share * (s.pause_s * s.tokens_per_s + s.switch_s * before) for s in here)
            earned += weights[k] * rate_here - crossings * paused
            before = rate_here
        return max(0.0, earned / sum(weights))
