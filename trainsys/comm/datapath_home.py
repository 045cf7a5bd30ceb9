"""The way home of what is computed on a travelling chunk: behind it, in its direction, where it goes from hand to hand.

Backwards over the same hops, a result would have to wait for the last member that the chunk comes to. Round a ring it
can go on in the chunk's own direction instead, one step behind, and close the circle: as many hops, each ready when its
turn comes. Imports no torch.
"""

from __future__ import annotations

import itertools

from trainsys.comm.datapath import Datapath, Send


def homeward(path: Datapath) -> Datapath:
    """The all-gather whose backwards the results of `path` go home on; `path` itself where chunks fan out on the way.

    Where nothing is passed on, results of what comes first go home first.
    """
    if all(path.source(chunk) == src for _, chunk, src, _ in path.sends.tolist()):
        last = path.num_steps - 1
        turned = (Send(last - step, chunk, src, dst) for step, chunk, src, dst in path.sends.tolist())
        return Datapath.of(f"{path.name} home", path.size, path.slices, turned)
    hops: dict[int, list[Send]] = {}
    for row in path.sends.tolist():
        hops.setdefault(row[1], []).append(Send(*row))
    if any(a.dst != b.src for way in hops.values() for a, b in itertools.pairwise(way)):
        return path
    steps, found = path.num_steps, []
    for chunk, way in hops.items():
        for hop in way[1:]:
            found.append(Send(steps - hop.step, chunk, hop.dst, hop.src))
        found.append(Send(steps - way[-1].step - 1, chunk, path.source(chunk), way[-1].dst))
    return Datapath.of(f"{path.name} home", path.size, path.slices, found)


def canonical_home(size: int, slices: int) -> Datapath:
    """Round the ring of member numbers, whatever the wires are.

    Backwards the contributions of members j+1, j+2, … are added up, and come home to j.
    """
    hops = (
        Send(step * slices + part, source * slices + part, (source - step) % size, (source - step - 1) % size)
        for step in range(size - 1)
        for source in range(size)
        for part in range(slices)
    )
    return Datapath.of("in turn", size, slices, hops)
