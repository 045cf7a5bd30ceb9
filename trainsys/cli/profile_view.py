"""A profile as a page of text."""

from __future__ import annotations

from pathlib import Path

from trainsys.profile.cluster_file import Profile


def show(profile: Profile, path: Path) -> None:
    """Print the device, the links and the collectives."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    compute, cluster = profile.measured.compute, profile.cluster
    console.print(
        f"{cluster.nodes} × {cluster.ranks_per_node} ranks of {cluster.device.name}: "
        f"{cluster.device.tflops:.4g} TFLOP/s ({compute.efficiency:.0%} of it in a layer), "
        f"memory {compute.memory_gbps:.3g} GB/s, a launch {1e6 * compute.launch_s:.2f} µs"
    )
    products = Table("n", "TFLOP/s", title="products \\[n, n]", title_justify="left")
    for n, rate in compute.gemm:
        products.add_row(str(n), f"{rate:.4g}")
    console.print(products)
    if cluster.links.gbps and len(cluster.links.gbps) <= 16:
        ranks = range(len(cluster.links.gbps))
        links = Table("from", *(f"to {r}" for r in ranks), title="GB/s, µs", title_justify="left")
        for a in ranks:
            pairs = zip(cluster.links.gbps[a], cluster.links.latency_s[a], strict=True)
            links.add_row(str(a), *(f"{g:.3g}, {1e6 * s:.0f}" if g else "" for g, s in pairs))
        console.print(links)
    rows = Table("collective", "MiB", "ms", "GB/s", "ring on these links, ms")
    for row in profile.collectives:
        rows.add_row(
            row.name, f"{row.num_bytes / 2**20:.4g}", f"{1e3 * row.seconds:.3f}", f"{row.bus_gbps:.3g}",
            f"{1e3 * row.predicted_s:.3f}",
        )  # fmt: skip
    console.print(rows)
    console.print(f"measured in {profile.measured.seconds:.0f} s; wrote {path}")
