"""The next layout: the configured one at the start, afterwards the planner's best successor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from trainsys.config import ClusterConfig, LinksConfig, ParallelConfig, RunConfig
from trainsys.models.geometry import split_layers
from trainsys.planner.device import Rate
from trainsys.planner.successor import successor
from trainsys.space.build import build_layout, succeed
from trainsys.space.layout import Layout


@dataclass(frozen=True)
class Question:
    """What a successor depends on. Many losses ask the same: which rank of a stage it was makes no difference.

    Attributes:
        nodes, ranks_per_node: of a cluster large enough for the members that there are.
        teams: whole tp teams.
        current: the layout's configuration.
        alive: per stage, teams that are still whole.
    """

    nodes: int
    ranks_per_node: int
    teams: int
    current: ParallelConfig
    alive: tuple[int, ...]


def question(cluster: ClusterConfig, layout: Layout, parallel: ParallelConfig, nodes: Mapping[int, int]) -> Question:
    """What is to be answered when of `layout` the members in `nodes` (member -> node) are left, or have come."""
    most = max(Counter(nodes.values()).values())
    alive = tuple(sum(nodes.keys() >= set(team) for team in stage.teams) for stage in layout.stages)
    wide, tall = max(cluster.nodes, max(nodes.values()) + 1), max(cluster.ranks_per_node, most)
    return Question(wide, tall, len(nodes) // parallel.tp, parallel, alive)


def answer(config: RunConfig, asked: Question, rate: Rate) -> ParallelConfig:
    """The best successor, with explicit `stage_layers`. Links to new nodes are not measured.

    Raises:
        ValueError: there is none for so few, or none that fits.
    """
    cluster = config.cluster
    if (asked.nodes, asked.ranks_per_node) != (cluster.nodes, cluster.ranks_per_node):
        cluster = replace(cluster, nodes=asked.nodes, ranks_per_node=asked.ranks_per_node, links=LinksConfig())
    chosen = successor(replace(config, cluster=cluster), asked.teams, asked.current, asked.alive, rate)
    layers = chosen.stage_layers or split_layers(config.model.num_layers, chosen.pp * chosen.vp)
    return replace(chosen, stage_layers=tuple(layers))


def choose(
    config: RunConfig, layout: Layout | None, parallel: ParallelConfig, nodes: Mapping[int, int], rate: Rate,
    answers: Callable[[Question], ParallelConfig] | None = None,
) -> tuple[ParallelConfig, Layout]:  # fmt: skip
    """A layout for the members that there are.

    Args:
        layout: the committed one; None at the start.
        parallel: its configuration, with explicit `stage_layers`.
        nodes: member -> node.
        rate: of the cluster's devices.
        answers: what `answer` says, for instance because it has been asked before.

    Raises:
        ValueError: there is none for so few, or none that fits.
    """
    ranks = sorted(nodes)
    parts = config.model.vocab_parts
    if layout is None:
        return parallel, build_layout(
            parallel, parallel.stage_layers, ranks, config.elastic.chunk, nodes.__getitem__, parts,
            config.elastic.tolerate,
        )  # fmt: skip
    asked = question(config.cluster, layout, parallel, nodes)
    chosen = answers(asked) if answers is not None else answer(config, asked, rate)
    return chosen, succeed(
        layout, chosen, chosen.stage_layers, ranks, nodes.__getitem__, parts, config.elastic.tolerate
    )
