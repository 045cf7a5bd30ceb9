"""What a datapath promises, checked before it is used: all arrives once, and nothing leaves before it is there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainsys.comm.datapath import Datapath
from trainsys.comm.wires import Wires

Rows = NDArray[np.int32]


def check(path: Datapath) -> None:
    """That this is an all-gather: every chunk arrives once at every member but its source, and is sent on later.

    Raises:
        ValueError: naming step, chunk, src and dst of the first send that is wrong, or a chunk that never arrives.
    """
    _check_rows(path)
    steps, chunks, src, dst = path.sends.T
    sources = np.arange(path.num_chunks) // path.slices
    _refuse(path, dst == sources[chunks], "goes to the member it comes from")
    _refuse(path, _repeated(path, dst), "arrives a second time")
    came = np.full((path.num_chunks, path.size), -2, dtype=np.int64)  # -2: never, -1: there from the start
    came[chunks, dst] = steps
    came[np.arange(path.num_chunks), sources] = -1
    _refuse(path, came[chunks, src] == -2, "never arrives at its sender")
    _refuse(path, came[chunks, src] >= steps, "is not yet at its sender")
    _refuse_missing(path, came, "never arrives at member")


def check_backwards(path: Datapath) -> None:
    """That this is a reduce-scatter: of a chunk, all but its owner send their sum once, after all that they add.

    So every contribution is added exactly once on its way to the owner.

    Raises:
        ValueError: naming step, chunk, src and dst of the first send that is wrong, or a contribution that is left out.
    """
    _check_rows(path)
    steps, chunks, src, dst = path.sends.T
    owners = np.arange(path.num_chunks) // path.slices
    _refuse(path, src == owners[chunks], "leaves the member that shall have the sum")
    _refuse(path, _repeated(path, src), "leaves its sender a second time")
    left = np.full((path.num_chunks, path.size), -2, dtype=np.int64)
    left[chunks, src] = steps
    left[np.arange(path.num_chunks), owners] = np.iinfo(np.int64).max
    _refuse(path, left[chunks, dst] == -2, "is added where it never leaves")
    _refuse(path, left[chunks, dst] <= steps, "is added after the sum has left")
    _refuse_missing(path, left, "lacks the contribution of member")


def check_load(path: Datapath, wires: Wires, most: int) -> None:
    """That no edge of the wires carries more than `most` chunks in one step.

    Raises:
        ValueError: naming the edge, the step and its chunks; or a pair that has no way between.
    """
    found: dict[tuple[int, int, int], int] = {}
    for step, _, src, dst in path.sends.tolist():
        for a, b in way(wires, src, dst):
            found[step, a, b] = found.get((step, a, b), 0) + 1
    for (step, a, b), count in sorted(found.items()):
        if count > most:
            raise ValueError(f"{path.name}: step {step} puts {count} chunks on the wire {a}→{b}, more than {most}")


def way(wires: Wires, src: int, dst: int) -> tuple[tuple[int, int], ...]:
    """The edges from `src` to `dst`. Raises ValueError if there is none."""
    if (src, dst) not in wires.routes:
        raise ValueError(f"{wires.name} has no way from rank {src} to rank {dst}")
    return wires.routes[src, dst]


def _check_rows(path: Datapath) -> None:
    steps, chunks, src, dst = path.sends.T
    _refuse(path, steps < 0, "is sent before the first step")
    _refuse(path, (chunks < 0) | (chunks >= path.num_chunks), "does not exist")
    for member in (src, dst):
        _refuse(path, (member < 0) | (member >= path.size), f"is sent beyond the {path.size} members")
    _refuse(path, src == dst, "goes nowhere")


def _repeated(path: Datapath, members: Rows) -> NDArray[np.bool_]:
    """Which sends have the chunk and the member of one before."""
    keys = path.sends[:, 1].astype(np.int64) * path.size + members
    _, first = np.unique(keys, return_index=True)
    repeated = np.ones(len(keys), dtype=bool)
    repeated[first] = False
    return repeated


def _refuse(path: Datapath, wrong: NDArray[np.bool_], why: str) -> None:
    if wrong.any():
        step, chunk, src, dst = path.sends[int(np.argmax(wrong))].tolist()
        raise ValueError(f"{path.name}: step {step}, chunk {chunk} from {src} to {dst} {why}")


def _refuse_missing(path: Datapath, when: NDArray[np.int64], what: str) -> None:
    if (when == -2).any():
        chunk, member = np.argwhere(when == -2)[0].tolist()
        raise ValueError(f"{path.name}: chunk {chunk} {what} {member}")
