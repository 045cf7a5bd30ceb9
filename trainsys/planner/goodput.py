"""What a layout earns where nodes fail and come back: the layouts that follow it, and expected tokens per second.

Nodes fail independently, each ``cluster.node_mtbf_hours`` after it came in the mean, and come back after
``cluster.node_repair_hours``: the number of lost nodes is a birth-death chain, whose shares of time have a closed form
(Kleinrock 1975, "Queueing Systems" I, §3.2). In each state the layout runs that the elastic manager would choose, by
the same call, and every change of state costs a pause: noticing it, the step that was under way, the switch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, lgamma, log
from time import process_time

from trainsys.comm.topology import Topology
from trainsys.config import LinksConfig, ParallelConfig, RunConfig
from trainsys.models.geometry import split_layers, tensors
from trainsys.planner.choose import choose
from trainsys.planner.device import Rate, rate
from trainsys.planner.plan import Plan
from trainsys.planner.precision import Precision
from trainsys.planner.predict import predict, worst_memory
from trainsys.planner.stages import Stages, notation
from trainsys.planner.switch import switch
from trainsys.space.build import build_layout
from trainsys.space.coverage import LostError
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space

_PIECES = 64  # of a rank, at least, when a switch is costed: more would only say the same more slowly
_SAMPLE = 8  # ranks whose switch is looked at
_GAIN = 1e-3  # relative: less is within the model's error, and does not make a slower plan the better one
DEPTH = 2  # lost nodes looked at; that more are lost at once is counted as standing still


@dataclass(frozen=True)
class Successor:
    """The layout after nodes have gone or come.

    Attributes:
        change: nodes less or more than planned for.
        share: of the nodes, those whose loss leads here.
        layout: empty where training stops: `why` says so.
        received_gib, switch_s: of the rank that takes longest: `Switch`; from a checkpoint no seconds are known.
        planning_s: of finding the layout, as measured here on an idle core.
        pause_s: from the failure until training goes on.
        lost_steps: that must be done again, in the mean, because they are not in the checkpoint.
    """

    change: int
    share: float
    layout: str
    step_s: float = 0.0
    tokens_per_s: float = 0.0
    received_gib: float = 0.0
    switch_s: float = 0.0
    planning_s: float = 0.0
    pause_s: float = 0.0
    lost_steps: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Outlook:
    """A layout under failures.

    Attributes:
        successors: by change, most likely first.
        goodput: expected tokens/s; without a rate of failures those of the layout itself.
        availability: goodput over the tokens/s of a cluster that never fails.
        beyond: share of the time in which more nodes are lost than were looked at: counted as standing still.
    """

    layout: str
    successors: tuple[Successor, ...]
    goodput: float
    availability: float
    beyond: float = 0.0


@dataclass(frozen=True)
class _State:
    parallel: ParallelConfig
    layout: Layout
    nodes: Mapping[int, int]  # living rank -> node


def by_goodput(config: RunConfig, plans: Sequence[Plan], depth: int = DEPTH) -> list[tuple[Plan, Outlook]]:
    """The plans, fastest first, with their outlooks, and the one that earns most brought to the front.

    It must earn more by `_GAIN` than a faster one.
    """
    looks = [(plan, outlook(_of(config, plan), plan.parallel, depth=depth)) for plan in plans]
    best = 0
    for i, (_, look) in enumerate(looks):
        if look.goodput > looks[best][1].goodput * (1 + _GAIN):
            best = i
    return [looks[best], *looks[:best], *looks[best + 1 :]]


def _of(config: RunConfig, plan: Plan) -> RunConfig:
    size = plan.microbatch_size or config.batch.microbatch_size
    return replace(config, batch=replace(config.batch, microbatch_size=size))


def _named(config: RunConfig, parallel: ParallelConfig) -> str:
    """As a plan is: layers that are split evenly are not listed."""
    even = parallel.stage_layers == split_layers(config.model.num_layers, len(parallel.stage_layers))
    return notation(replace(parallel, stage_layers=()) if even else parallel)


def outlook(config: RunConfig, parallel: ParallelConfig, grow: int = 1, depth: int = DEPTH) -> Outlook:
    """What follows `parallel` when nodes are lost one by one, or `grow` more are there, and what that earns.

    Args:
        depth: most nodes lost at once. Which ones is averaged over for the first; the later ones are lost from where
            most losses lead.
    """
    layers = parallel.stage_layers or split_layers(config.model.num_layers, parallel.pp * parallel.vp)
    parallel = replace(parallel, stage_layers=tuple(layers))
    config = replace(config, parallel=parallel)
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
    beyond = chain.beyond(max((-s.change for s in found), default=0))
    return Outlook(_named(config, parallel), tuple(found), goodput, goodput / own, beyond)


class _Chain:
    """The states of one planned layout."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.space = config, Space(tuple(tensors(config.model)))
        self.topology = Topology.from_config(config.cluster)
        self.rate: Rate = rate(config.cluster, self.topology.num_ranks)
        nodes = {r: self.topology.node_of(r) for r in range(self.topology.num_ranks)}
        parallel, chunk = config.parallel, max(config.elastic.chunk, self.space.numel // (_PIECES * len(nodes)))
        layout = build_layout(
            parallel, parallel.stage_layers, sorted(nodes), chunk, nodes.__getitem__, config.model.vocab_parts,
            config.elastic.tolerate,
        )  # fmt: skip
        self.first = _State(parallel, layout, nodes)

    def tokens_per_s(self, step_s: float) -> float:
        return self.config.batch.tokens / step_s

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
        under_way_s = predict(self.config, state.parallel, self.rate, whole=False).step_s / 2  # half a step in the mean
        blank = Successor(change, share, "", pause_s=self.config.elastic.heartbeat_limit_s + under_way_s)
        return self._change(self.config, self.topology, state, nodes, blank)

    def gain(self, count: int) -> Successor:
        """What `count` more nodes lead to; their links are the declared ones."""
        cluster = self.config.cluster
        wider = replace(cluster, nodes=cluster.nodes + count, links=LinksConfig())
        topology = Topology.from_config(wider)
        nodes = {r: topology.node_of(r) for r in range(topology.num_ranks)}
        config = replace(self.config, cluster=wider)
        return self._change(config, topology, self.first, nodes, Successor(count, 1.0, ""))[0]

    def _change(
        self, config: RunConfig, topology: Topology, state: _State, nodes: Mapping[int, int], blank: Successor
    ) -> tuple[Successor, _State | None]:
        """`blank`, with the pause before anything is done, filled in; and the state that it leads to."""
        start = process_time()
        try:
            parallel, layout = choose(config, state.layout, state.parallel, nodes, self.rate)
        except ValueError as error:
            return replace(blank, lost_steps=self.unsaved, pause_s=0.0, why=str(error)), None
        planning_s = process_time() - start
        step_s = predict(config, parallel, self.rate, whole=False).step_s
        found = replace(
            blank, layout=_named(config, parallel), step_s=step_s, tokens_per_s=self.tokens_per_s(step_s),
            planning_s=planning_s,
        )  # fmt: skip
        alive, size = [r for r in state.layout.ranks if r in nodes], Precision.of(config.train.dtype).state
        try:
            cost = switch(self.space, state.layout, layout, alive, topology, size, _SAMPLE)
        except LostError as error:
            own = replace(config, parallel=parallel)
            received = worst_memory(own, Stages.of(config.model, parallel)).optimizer
            found = replace(found, received_gib=received, lost_steps=self.unsaved, why=f"state is lost: {error}")
        else:
            found = replace(found, received_gib=cost.received_gib, switch_s=cost.seconds)
        return replace(found, pause_s=blank.pause_s + planning_s + found.switch_s), _State(parallel, layout, nodes)

    @property
    def unsaved(self) -> float:
        """Steps since the last checkpoint, or without any since the beginning, at some moment of the run."""
        return (self.config.checkpoint.every or self.config.train.steps) / 2

    def goodput(self, successors: list[Successor]) -> float:
        """Expected tokens/s over the states, less what is not trained, or trained twice, when the state changes."""
        first = self.tokens_per_s(predict(self.config, self.config.parallel, self.rate, whole=False).step_s)
        if not self.config.cluster.node_mtbf_hours:
            return first
        step_tokens = self.tokens_per_s(1.0)
        fail, weights = self._weights()
        earned, before = weights[0] * first, first
        depth = max((-s.change for s in successors), default=0)
        for k in range(1, depth + 1):
            here = [s for s in successors if s.change == -k]
            rate_here = sum(s.share * s.tokens_per_s for s in here)
            crossings = weights[k - 1] * fail[k - 1]  # failures into this state, and as many repairs out of it
            missed = sum(
                s.share * (s.pause_s * s.tokens_per_s + s.switch_s * before + s.lost_steps * step_tokens) for s in here
            )
            earned += weights[k] * rate_here - crossings * missed
            before = rate_here
        if before and depth == self.config.cluster.nodes - 1:  # the last node takes the state with it
            earned -= weights[depth] * fail[depth] * self.unsaved * step_tokens
        return max(0.0, earned / sum(weights))

    def beyond(self, depth: int) -> float:
        """Share of the time with more than `depth` nodes lost."""
        if not self.config.cluster.node_mtbf_hours:
            return 0.0
        _, weights = self._weights()
        return sum(weights[depth + 1 :]) / sum(weights)

    def _weights(self) -> tuple[list[float], list[float]]:
        """Failures per second with k nodes lost, and the share of time of that, up to a factor."""
        cluster = self.config.cluster
        fail = [(cluster.nodes - k) / cluster.node_mtbf_hours / 3600 for k in range(cluster.nodes + 1)]
        return fail, lost_shares(cluster.nodes, cluster.node_repair_hours / cluster.node_mtbf_hours)


def lost_shares(nodes: int, ratio: float) -> list[float]:
    """Share of time with k = 0 to `nodes` of them lost, up to a factor: (n over k)·ratio^k.

    Args:
        ratio: repair time over time between failures.
    """
    logs = [
        lgamma(nodes + 1) - lgamma(k + 1) - lgamma(nodes - k + 1) + k * log(ratio) for k in range(nodes + 1)
    ]  # n over k itself overflows
    most = max(logs)
    return [exp(value - most) for value in logs]
