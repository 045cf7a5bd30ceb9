"""A datapath made for the wires that there are: lopsided ones, with holes, of several levels, of a thousand ranks."""

from __future__ import annotations

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapath_check import check
from trainsys.comm.datapath_time import ALPHA_S, seconds
from trainsys.comm.datapaths.greedy import synthesise
from trainsys.comm.datapaths.rings import check_slices
from trainsys.comm.wires import Wires

NBYTES = 4e6  # of a member's tensor, where nobody says: messages much shorter than 256 kB are no faster
SLICES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
MOST_SENDS = 1_000  # of a datapath that is made to find the best number of slices
GAIN = 0.01  # what more slices must bring


def generate(wires: Wires, slices: int = 0, nbytes_per_member: float = NBYTES, alpha_s: float = ALPHA_S) -> Datapath:
    """Synthesised and checked; the same for the same arguments.

    Without `slices`, the fewest within 1 % of the best. Over wires that differ by direction, a reduce-scatter is
    ``generate(wires.turned()).backwards()``.

    Args:
        nbytes_per_member: of a tensor; weighs rates against latencies.
        alpha_s: what every message costs its pair.

    Raises:
        ValueError: where a rank cannot be reached from another, even over ranks between.
    """
    n = wires.num_ranks
    check_slices("synthesis", slices)
    choices = [slices] if slices else [k for k in SLICES if k == 1 or k * n * (n - 1) <= MOST_SENDS]
    found: list[tuple[float, Datapath]] = []
    for k in choices:
        path = Datapath("synthesis", n, k, synthesise(wires, k, nbytes_per_member / k, alpha_s))
        found.append((seconds(path, wires, nbytes_per_member, alpha_s) if len(choices) > 1 else 0.0, path))
    best = min(time for time, _ in found)
    path = next(path for time, path in found if time <= best * (1 + GAIN))
    check(path)
    return path
