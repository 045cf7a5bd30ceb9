"""The next layout: the configured one at the start, afterwards the planner's best successor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from trainsys.config import LinksConfig, ParallelConfig, RunConfig
from trainsys.models.geometry import split_layers
from trainsys.planner.device import Rate
from trainsys.planner.successor import successor
from trainsys.space.build import build_layout, succeed
from trainsys.space.layout import Layout


def choose(
    config: RunConfig, layout: Layout | None, parallel: ParallelConfig, nodes: Mapping[int, int], rate: Rate
) -> tuple[ParallelConfig, Layout]:
    """A layout for the members that there are.

    Args:
        layout: the committed one; None at the start.
        parallel: its configuration, with explicit `stage_layers`.
        nodes: member -> node.
        rate: of the cluster's devices.

    Raises:
        ValueError: there is none for so few, or none that fits.
    """
    ranks = sorted(nodes)
    if layout is None:
        return parallel, build_layout(
            parallel, parallel.stage_layers, ranks, config.elastic.chunk, nodes.__getitem__, config.model.vocab_parts
        )
    living = set(ranks)
    whole = [sum(living.issuperset(team) for team in stage.teams) for stage in layout.stages]
    chosen = successor(_with_nodes(config, nodes), len(ranks) // parallel.tp, parallel, whole, rate)
    layers = chosen.stage_layers or split_layers(config.model.num_layers, chosen.pp * chosen.vp)
    chosen = replace(chosen, stage_layers=tuple(layers))
    return chosen, succeed(layout, chosen, layers, ranks, nodes.__getitem__, config.model.vocab_parts)


def _with_nodes(config: RunConfig, nodes: Mapping[int, int]) -> RunConfig:
    """The config with a cluster large enough for the members that there are; links to new ones are not measured."""
    cluster = config.cluster
    most = max(Counter(nodes.values()).values())
    wider = replace(
        cluster, nodes=max(cluster.nodes, max(nodes.values()) + 1), ranks_per_node=max(cluster.ranks_per_node, most)
    )
    if (wider.nodes, wider.ranks_per_node) != (cluster.nodes, cluster.ranks_per_node):
        wider = replace(wider, links=LinksConfig())
    return replace(config, cluster=wider)
