"""A profile as a cluster file that `plan` reads, with what it has no key for as comments."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from statistics import median

from trainsys.comm.topology import Topology
from trainsys.config import ClusterConfig, DeviceConfig, LinkConfig, LinksConfig
from trainsys.perf.device import catalogue
from trainsys.profile.collectives import Collective, judged
from trainsys.profile.measure import Measured

_OF_FREE_HOST = (
    0.8  # of a machine's free memory, for all its ranks: the system, page cache and pinned buffers need some
)
_OF_FREE_DEVICE = 0.95  # of a device's free memory: the allocator's fragments and the libraries' workspaces need some


@dataclass(frozen=True)
class Profile:
    """The measured cluster, and its collectives beside what its links say."""

    cluster: ClusterConfig
    collectives: tuple[Collective, ...]
    measured: Measured


def as_cluster(measured: Measured, name: str) -> Profile:
    """The cluster of a measurement.

    Raises:
        ValueError: nodes with different numbers of ranks.
    """
    per_node = Counter(seen.node for seen in measured.seen)
    if len(set(per_node.values())) > 1:
        counts = ", ".join(f"node {node}: {count}" for node, count in sorted(per_node.items()))
        raise ValueError(f"nodes have different numbers of ranks ({counts}); start as many on each")
    gbps = _matrix(measured, "gbps", 4)
    latency = _matrix(measured, "latency_s", 7)
    nodes = [seen.node for seen in measured.seen]
    pairs = [(a, b) for a in range(len(nodes)) for b in range(len(nodes)) if a != b]

    def typical(within: bool) -> LinkConfig:
        kind = [(a, b) for a, b in pairs if (nodes[a] == nodes[b]) is within] or pairs
        if not kind:
            return LinkConfig()
        return LinkConfig(_digits(median(gbps[a][b] for a, b in kind)), _digits(median(latency[a][b] for a, b in kind)))

    size, compute = next(iter(per_node.values())), measured.compute
    shared = measured.cores > 0
    device = DeviceConfig(
        name=_known(measured.seen[0].device),
        tflops=_digits(compute.tflops),
        memory_gib=_digits(
            min(s.memory_gib for s in measured.seen) * (_OF_FREE_HOST / size if shared else _OF_FREE_DEVICE)
        ),
        efficiency=_digits(compute.efficiency),
        memory_gbps=_digits(compute.memory_gbps),
        backend=measured.backend,
        **({"host_gbps": _digits(compute.host_gbps)} if compute.host_gbps else {}),
    )
    cluster = ClusterConfig(
        name=name, nodes=len(per_node), ranks_per_node=size, device=device, intra_node=typical(True),
        inter_node=typical(False), links=LinksConfig(gbps=gbps, latency_s=latency) if pairs else LinksConfig(),
        shared_cores=shared,
    )  # fmt: skip
    slowest = [(rows[0][0], rows[0][1], max(row[2] for row in rows)) for rows in _by_collective(measured)]
    return Profile(cluster, tuple(judged(slowest, Topology.from_config(cluster))), measured)


def _by_collective(measured: Measured) -> list[tuple[tuple[str, int, float], ...]]:
    return list(zip(*(seen.collectives for seen in measured.seen), strict=True))


def _matrix(measured: Measured, field: str, places: int) -> tuple[tuple[float, ...], ...]:
    rows = []
    for rank, seen in enumerate(measured.seen):
        values = {link.peer: getattr(link, field) for link in seen.links}
        rows.append(tuple(0.0 if peer == rank else _digits(values[peer]) for peer in range(len(measured.seen))))
    return tuple(rows)


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _known(name: str) -> str:
    """The catalogue's name of a GPU as its driver calls it; else that name itself."""
    words = name.lower().replace("nvidia ", "").replace("amd ", "").replace("instinct ", "")
    for known in catalogue():
        if all(part in words.replace("-", " ") for part in known.split("-")[:2]):
            return known
    return "cpu" if words.startswith("cpu") else words.replace(" ", "-")


def as_text(profile: Profile) -> str:
    """The YAML file."""
    cluster, compute = profile.cluster, profile.measured.compute
    device = cluster.device
    host = f"host_gbps: {device.host_gbps:g}, " if compute.host_gbps else ""
    lines = [
        f"# {cluster.nodes} × {cluster.ranks_per_node} ranks, measured by `trainsys profile` in "
        f"{profile.measured.seconds:.0f} s. tflops is the best matrix product,",
        "# efficiency what forward and backward of one layer reach of it, memory_gib what was free.",
        "# products [n, n]: " + ", ".join(f"{n}: {rate:.4g} TFLOP/s" for n, rate in compute.gemm),
        f"# a launch: {1e6 * compute.launch_s:.2f} µs",
        *(
            f"# {row.name:10} {row.num_bytes / 2**20:7.4g} MiB {1e3 * row.seconds:9.3f} ms, {row.bus_gbps:.3g} GB/s; "
            f"a ring on these links: {1e3 * row.predicted_s:.3f} ms"
            for row in profile.collectives
        ),
        "cluster:",
        f"  name: {json.dumps(cluster.name)}",
        f"  nodes: {cluster.nodes}",
        f"  ranks_per_node: {cluster.ranks_per_node}",
        f"  shared_cores: {str(cluster.shared_cores).lower()}",
        f"  device: {{name: {json.dumps(device.name)}, tflops: {device.tflops:g}, memory_gib: {device.memory_gib:g}, "
        f"efficiency: {device.efficiency:g}, memory_gbps: {device.memory_gbps:g}, {host}backend: {device.backend}}}",
        f"  intra_node: {{gbps: {cluster.intra_node.gbps:g}, latency_s: {_float(cluster.intra_node.latency_s)}}}",
        f"  inter_node: {{gbps: {cluster.inter_node.gbps:g}, latency_s: {_float(cluster.inter_node.latency_s)}}}",
    ]
    if cluster.links.gbps:
        lines.append("  links:  # from rows to columns")
        for name in ("gbps", "latency_s"):
            lines.append(f"    {name}:")
            lines += [f"      - [{', '.join(map(_float, row))}]" for row in getattr(cluster.links, name)]
    return "\n".join(lines) + "\n"


def _float(value: float) -> str:
    """A number that YAML takes for one: 1e-05 has no point."""
    text = f"{value:g}"
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
