"""Communicator edits after deaths: a rank is killed inside an all-reduce, the survivors go on without it.

The groups are those of a dp x 2 mesh: one of all ranks, one per stage of a two-stage pipeline, and the pairs between.
All ranks reduce 1 MiB without pause; a random one gets SIGKILL. An edit is all that follows: the survivors are told,
leave the collective, say which groups are quiet, connect what they lack and do their first all-reduce. Then a fresh
process takes the rank's place and is taken in. Beside it: every group anew, and what c10d has. Further: after how long
a blocked rank that is no neighbour of the dead returns, edits during which a second rank dies, and leaks.

    trainsys bench regroup [--ranks 4] [--deaths 50] [--peers 10] [--json]
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._regroup_deaths import PARTS, WAYS, deaths, detection, quantile, second_deaths
from trainsys.cli.arguments import Parser, at_least, positive

BARS_MS = {"p50": 30.0, "p95": 100.0}  # of an edit


def groups(members: Sequence[int]) -> list[tuple[int, ...]]:
    """All, the even and the odd ones (two stages), and neighbours (the pairs that a replica's stages form)."""
    pairs = [tuple(members[i : i + 2]) for i in range(0, len(members), 2)]
    candidates = [tuple(members), tuple(members[::2]), tuple(members[1::2]), *pairs]
    return [g for g in dict.fromkeys(candidates) if len(g) > 1]


def measure(ranks: int, count: int, peers: int, timeout_s: float) -> dict[str, Any]:
    """Everything that the table shows; `count` deaths of our own edits, `peers` of each other way."""
    ways = [deaths(ranks, groups, way, count if way == "edit" else peers) for way in WAYS]
    return {
        "ranks": ranks,
        "bars_ms": BARS_MS,
        "load": os.getloadavg()[0] / (os.cpu_count() or 1),
        "ways": ways,
        "detection": [
            detection(ranks, groups, True, peers, timeout_s),
            detection(ranks, groups, False, 2, timeout_s),
        ],
        "second_deaths": second_deaths(ranks, groups, peers),
    }


def show(found: Mapping[str, Any]) -> None:
    """Print the table."""
    print(f"load before: {found['load']:.1f} per core; above 1 the rest of the machine is timed too")
    print(f"{found['ranks']} ranks, gloo over loopback; ms from a SIGKILL inside an all-reduce, p50 / p95 / most")
    print(f"{'':34}" + "".join(f"{part:>22}" for part in PARTS))
    for row in found["ways"]:
        cells = "".join(f"{_three(row['ms'][part]):>22}" for part in PARTS)
        print(f"{WAYS[row['way']][1]:34}{cells}   {row['deaths']} deaths, {row['kept']:.1f} groups kept")
    edit = found["ways"][0]
    for name, bar in found["bars_ms"].items():
        reached = _reached(found, name)
        print(f"bar: edit {name} {reached:.1f} ms, at most {bar:g}: {'held' if reached <= bar else 'MISSED'}")
    grown = ", ".join(f"{value:+d} {name}" for name, value in edit["growth"].items())
    print(f"growth of rank 0 over {edit['epochs']} epochs: {grown}")
    for row in found["detection"]:
        told = "told, and aborted" if row["aborts"] else f"left alone (timeout {row['timeout_s']:g} s)"
        longest = ", ".join(f"{who} {max(values):.3f} s" for who, values in row["seconds"].items() if values)
        print(f"blocked call returns, {told}: {longest} at most, {row['deaths']} deaths")
    row = found["second_deaths"]
    print(
        f"a second death while connecting: {len(row['ms'])} edits tried again, done {_three(row['ms'])} ms after it; "
        f"{row['failed']} of {row['asked']} ranks had failed, with {min(row['held'], default=0)} old groups or more"
    )


def _three(values: Sequence[float]) -> str:
    return f"{quantile(values, 0.5):.1f} / {quantile(values, 0.95):.1f} / {max(values):.1f}"


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench regroup", __doc__.splitlines()[0], "  trainsys bench regroup --json")
    parser.add_argument("--ranks", type=int, default=4, help="at least 4, so that somebody is no neighbour of the dead")
    parser.add_argument("--deaths", type=int, default=50, help="of the edits in place")
    parser.add_argument("--peers", type=int, default=10, help="deaths of each other way")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds of the groups that nobody aborts")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    at_least("--ranks", args.ranks, 4)
    at_least("--deaths", args.deaths)
    at_least("--peers", args.peers)
    positive("--timeout", args.timeout)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # c10d tells at length of connections that end
    found = measure(args.ranks, args.deaths, args.peers, args.timeout)
    if args.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0 if all(_reached(found, name) <= bar for name, bar in BARS_MS.items()) else 1


def _reached(found: Mapping[str, Any], name: str) -> float:
    """`p50`, `p95`: ms of an edit."""
    return quantile(found["ways"][0]["ms"]["total"], float(name[1:]) / 100)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
