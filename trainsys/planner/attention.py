"""Attention between the cp teams of a layout: the wires they have, and the method that will be fastest on them."""

from __future__ import annotations

from collections.abc import Sequence

from trainsys.comm.topology import Topology
from trainsys.comm.wires import Wires
from trainsys.comm.wires_of import wires_of
from trainsys.config import ClusterConfig, RunConfig
from trainsys.models.family import head_dim
from trainsys.models.geometry import resolve
from trainsys.planner.device import rate
from trainsys.planner.precision import Precision
from trainsys.planner.stages import Stages
from trainsys.planner.states import softmax_layers
from trainsys.sequence.layouts import LAYOUTS
from trainsys.sequence.mask import Mask
from trainsys.sequence.place import Place
from trainsys.sequence.price import Rates, Shape
from trainsys.sequence.select import Choice, choices


def wires_among(cluster: ClusterConfig, ranks: Sequence[int]) -> Wires:
    """Of `ranks` as the cluster numbers them; one beyond it (fresh, on a spare place) counts from the first again."""
    size = cluster.nodes * cluster.ranks_per_node
    topology = Topology.from_config(cluster)
    return wires_of(topology, [rank % size for rank in ranks], cluster.fabric)


def rates_of(cluster: ClusterConfig, num_ranks: int) -> Rates:
    """What the device's declared or measured rate says of attention's kernels."""
    found = rate(cluster, num_ranks)
    flops = found.alone_flops or found.flops
    return Rates(flops, flops, cores=found.cores)


def methods_of(config: RunConfig, stages: Stages, topology: Topology) -> list[Choice]:
    """All methods that can serve the cp teams of the first stage, the fastest first; none without cp
    or where no layer has softmax."""
    if stages.cp == 1 or not any(softmax_layers(config, stages, run) for run in range(len(stages.runs))):
        return []
    model, parallel = resolve(config.model), config.parallel
    group = stages.sequence_groups(0)[0]
    place = Place(
        LAYOUTS[parallel.cp_layout](config.batch.seq_len, stages.cp),
        Mask(window=model.window),
        wires_of(topology, list(group), config.cluster.fabric),
        model.num_heads // stages.tp,
        max(1, model.num_kv_heads // stages.tp),
        head_dim(model),
        head_dim(model),
    )
    size = Precision.of(config.train.dtype).activation
    shape = Shape(config.batch.microbatch_size, size, max(4, size))
    rates, canonical = rates_of(config.cluster, stages.num_ranks), parallel.cp_merge == "canonical"
    return choices(place, shape, rates, canonical, named=parallel.cp_method)
