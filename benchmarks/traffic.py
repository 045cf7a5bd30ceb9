"""The slowest of many flows on a leaf-spine network: paths placed beforehand, against hashing by the switches.

Simulated (`comm/fluid.py`) with as many spine links as hosts, so that a placement without collisions exists: a ring
over all hosts, each to its like under the next leaf, and random pairs with sizes of their own. Then one link between
leaf and spine ends, and the flows that took it are placed anew. Where there may be network namespaces, also real, with
TCP over two spines: what the kernel's own hashing (ECMP by ports) makes of two flows, against their placement.

    trainsys bench traffic [--hosts 32 128 512] [--seeds 10] [--lab 8] [--json]
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from random import Random
from statistics import mean
from typing import Any

from trainsys.cli.arguments import Parser
from trainsys.comm.fluid import Message, play
from trainsys.comm.topology import Link
from trainsys.comm.traffic import Flow, LeafSpine, Path, Placement, hashed, place, replan

PER_LEAF = 8
GBPS = 50.0  # of every link
COLLISION_BAR = 1.5  # placed against hashed where two flows meet, on the real network


def network(hosts: int) -> LeafSpine:
    """As many links from a leaf to spines as to hosts."""
    return LeafSpine(hosts, PER_LEAF, PER_LEAF, GBPS, GBPS)


def ring(hosts: int, seed: int) -> list[Flow]:
    """Equal flows, every host to its like under the next leaf."""
    return [Flow(host, (host + PER_LEAF) % hosts, 1e9) for host in range(hosts)]


def pairs(hosts: int, seed: int) -> list[Flow]:
    """Every host sends to one other, drawn; of 0.5 to 1.5 GB."""
    draw = Random(seed)
    ends = draw.sample(range(hosts), hosts)
    return [Flow(a, b, draw.uniform(0.5e9, 1.5e9)) for a, b in zip(ends, [*ends[1:], ends[0]], strict=True)]


PATTERNS = {"ring": ring, "pairs": pairs}


def slowest_s(flows: Sequence[Flow], paths: Sequence[Sequence[Path]], placement: Placement, at: LeafSpine) -> float:
    """Seconds until the last flow has ended, all from the same moment, with fair shares of every link."""
    links = {edge: Link(gbps, 0.0) for edge, gbps in at.gbps.items()}
    routes = [options[path] for options, path in zip(paths, placement, strict=True)]
    return max(play([Message(i, flow.load) for i, flow in enumerate(flows)], routes, links, 0.0))


def simulate(hosts: int, pattern: str, seeds: int) -> dict[str, Any]:
    """Seconds of the slowest flow placed and hashed, before and after a link's end; and what planning takes."""
    at, flows = network(hosts), PATTERNS[pattern](hosts, 0)
    paths = [at.paths(flow) for flow in flows]
    start = time.perf_counter()
    placement = place(flows, paths, at.gbps)
    planned = time.perf_counter()
    edge = next(paths[i][path][1] for i, path in enumerate(placement) if len(paths[i]) > 1)
    dead = {edge, edge[::-1]}
    began = time.perf_counter()
    after = replan(placement, flows, paths, at.gbps, dead)
    replanned = time.perf_counter()
    left = [[path for path in options if not set(path) & dead] for options in paths]
    chance = [slowest_s(flows, paths, hashed(paths, seed), at) for seed in range(seeds)]
    chance_after = [slowest_s(flows, left, hashed(left, seed), at) for seed in range(seeds)]
    return {
        "hosts": hosts,
        "pattern": pattern,
        "placed_s": slowest_s(flows, paths, placement, at),
        "hashed_s": chance,
        "plan_ms": 1e3 * (planned - start),
        "moved": sum(a != b for a, b in zip(placement, after, strict=True)),
        "replan_ms": 1e3 * (replanned - began),
        "placed_after_s": slowest_s(flows, paths, after, at),
        "hashed_after_s": chance_after,
    }


def show(found: Mapping[str, Any]) -> None:
    """Print the tables."""
    print("simulated: s of the slowest flow; hashed as mean (most) over seeds; then with one link of a leaf dead")
    print(f"{'hosts':>5} {'flows':6} {'placed':>7} {'hashed':>14} {'ratio':>6} {'plan':>9} | ", end="")
    print(f"{'moved':>5} {'anew':>9} {'placed':>7} {'hashed':>14} {'ratio':>6}")
    for row in found["simulated"]:
        print(f"{row['hosts']:5} {row['pattern']:6} {_beside(row['placed_s'], row['hashed_s'])}", end=" ")
        print(f"{row['plan_ms']:6.1f} ms | {row['moved']:5} {row['replan_ms']:6.2f} ms", end=" ")
        print(_beside(row["placed_after_s"], row["hashed_after_s"]))
    lab = found["lab"]
    if isinstance(lab, str):
        print(f"real network: not here: {lab}")
        return
    print(f"real: {lab['flows']} flows of {lab['megabytes']:g} MB over two spines, TCP; alone {lab['alone_s']:.3f} s")
    print("  placed  " + ", ".join(f"{t['slowest_s']:.3f} s" for t in lab["placed"]))
    print("  hashed  " + ", ".join(f"{t['slowest_s']:.3f} s{' (met)' * (t['met'] > 1)}" for t in lab["hashed"]))
    ratios = ratio_where_met(lab)
    verdict = "no collision in these trials" if ratios is None else f"{ratios:.2f} times as long as placed"
    print(f"  where flows met: {verdict} (bar {COLLISION_BAR:g})")
    cut = {key: 1e3 * value for key, value in lab["cut"].items() if key != "moved"}
    print(
        f"  a spine's link ends: told after {cut['told']:.0f} ms, placed anew after {cut['planned']:.0f} ms "
        f"({lab['cut']['moved']} of {lab['flows']} flows moved), all carry again after {cut['carries']:.0f} ms"
    )


def ratio_where_met(lab: Mapping[str, Any]) -> float | None:
    """The mean slowest flow of the trials in which hashing sent two over one link, over that of the placed ones."""
    met = [trial["slowest_s"] for trial in lab["hashed"] if trial["met"] > 1]
    return mean(met) / mean(trial["slowest_s"] for trial in lab["placed"]) if met else None


def _beside(placed: float, chance: Sequence[float]) -> str:
    return f"{placed:7.4f} {mean(chance):7.4f} ({max(chance):.2f}) {mean(chance) / placed:5.2f}x"


def real(trials: int) -> dict[str, Any] | str:
    """Two hosts under each of two leaves, two spines at 20 MB/s; or why not."""
    from benchmarks._traffic_lab import measure
    from trainsys.testing.spine_lab import missing

    if not trials:
        return "not asked for"
    return missing() or measure(LeafSpine(4, 2, 2, 1.0, 0.02), [Flow(0, 2, 8e6), Flow(1, 3, 8e6)], trials)


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench traffic", __doc__.splitlines()[0], "  trainsys bench traffic --hosts 32 --lab 4")
    parser.add_argument("--hosts", type=int, nargs="+", default=[32, 128, 512], help=f"multiples of {PER_LEAF}")
    parser.add_argument("--seeds", type=int, default=10, help="hashings per network")
    parser.add_argument("--lab", type=int, default=8, help="hashings of the real network; 0: none")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if any(hosts < 2 * PER_LEAF or hosts % PER_LEAF for hosts in args.hosts) or args.seeds < 1 or args.lab < 0:
        raise ValueError(
            f"--hosts {args.hosts} --seeds {args.seeds}: hosts by {PER_LEAF}s, two leaves and a seed at least"
        )
    found = {
        "simulated": [simulate(hosts, pattern, args.seeds) for hosts in args.hosts for pattern in PATTERNS],
        "lab": real(args.lab),
    }
    print(json.dumps(found)) if args.json else show(found)
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
