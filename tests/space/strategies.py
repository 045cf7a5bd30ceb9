"""Random small spaces and layouts, and a brute-force picture of them in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from trainsys.config import ParallelConfig
from trainsys.space.build import ORDER, build_layout
from trainsys.space.layout import Layout, Piece
from trainsys.space.tensor import EMBED, LogicalTensor, Space

TP = (1, 2, 4)
RANKS = 8
NodeOf = Callable[[int], int]


@st.composite
def spaces(draw: st.DrawFn, num_layers: int) -> Space:
    """Up to 5 tensors of 0 to 3 dims over the blocks of `num_layers` layers, one of them maybe tied."""
    tensors = []
    experts = draw(st.sampled_from([0, 4, 5]))
    for number in range(draw(st.integers(1, 5))):
        shape = draw(st.lists(st.integers(1, 5), min_size=0, max_size=3))
        split = draw(st.sampled_from([None, *range(min(2, len(shape)))]))
        if split is not None:
            shape[split] = 4 * draw(st.integers(1, 2))
        block, most = draw(st.integers(EMBED, num_layers)), draw(st.sampled_from([None, 1, 2, 4]))
        own = draw(st.integers(0, experts - 1)) if experts and draw(st.booleans()) else None
        tensors.append(LogicalTensor(f"t{number}", tuple(shape), block, split, (), None, most, own, experts))
    if draw(st.booleans()):
        tensors.append(LogicalTensor("tied", (8, 3), EMBED, 0, (EMBED, num_layers)))
    return Space(tuple(tensors))


@st.composite
def meshes(draw: st.DrawFn, num_layers: int, num_ranks: int) -> tuple[ParallelConfig, tuple[int, ...]]:
    """A mesh that fits on `num_ranks` ranks, often ragged, with its layers per run of them."""
    tp = draw(st.sampled_from([t for t in TP if t <= num_ranks]))
    cp = draw(st.sampled_from([c for c in (1, 1, 2) if tp * c <= num_ranks]))
    places = num_ranks // tp // cp
    pp = draw(st.integers(1, min(places, num_layers)))
    vp = draw(st.sampled_from([1, 1, *range(2, num_layers // pp + 1)]))
    cuts = sorted(draw(st.permutations(range(1, num_layers)))[: pp * vp - 1])
    layers = tuple(b - a for a, b in zip([0, *cuts], [*cuts, num_layers], strict=True))
    replicas = []
    for stage in range(pp):
        spare = places - sum(replicas) - (pp - stage)
        replicas.append(1 + draw(st.integers(0, spare)))
    ep = draw(st.sampled_from([1, *(e for e in (2, 3, 4) if e <= min(replicas) * cp)]))
    order = ",".join(draw(st.permutations(ORDER)))
    zero, degrees = draw(st.integers(0, 3)), tuple(replicas)
    return ParallelConfig(tp=tp, pp=pp, vp=vp, cp=cp, ep=ep, zero=zero, order=order, stage_replicas=degrees), layers


@st.composite
def survivors(draw: st.DrawFn, old: Layout, alive: Sequence[int]) -> tuple[ParallelConfig, tuple[int, ...]]:
    """Some of the living ranks, and replicas for the stages of `old` that fit on them."""
    team, least = old.tp * old.cp, old.tp * old.cp * old.pp
    dead = draw(st.sets(st.sampled_from(alive), max_size=max(0, len(alive) - least)))
    left = tuple(r for r in alive if r not in dead)
    wanted = [1] * old.pp
    for stage in draw(st.lists(st.integers(0, old.pp - 1), max_size=len(left) // team - old.pp)):
        wanted[stage] += 1
    ep = min(old.ep, min(wanted) * old.cp)
    more = {"tp": old.tp, "cp": old.cp, "vp": old.vp, "ep": ep, "zero": old.zero}
    return ParallelConfig(**more, stage_replicas=tuple(wanted)), left


@st.composite
def layouts(draw: st.DrawFn, num_layers: int, chunk: int, node_of: NodeOf) -> Layout:
    """A layout on some of the ranks 0 … 7."""
    size = draw(st.integers(1, RANKS))
    ranks = sorted(draw(st.permutations(range(RANKS)))[:size])
    parallel, layers = draw(meshes(num_layers, size))
    return build_layout(parallel, layers, ranks, chunk, node_of, tolerate=draw(st.sampled_from([1, 1, 0, 2, 3, 9])))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Space, Layout, NodeOf]:
    """A space and a layout of it."""
    num_layers, chunk = draw(st.integers(1, 4)), draw(st.integers(1, 13))
    node_of = draw(nodes())
    return draw(spaces(num_layers)), draw(layouts(num_layers, chunk, node_of)), node_of


@st.composite
def changes(draw: st.DrawFn) -> tuple[Space, Layout, Layout, tuple[int, ...], NodeOf]:
    """A space, two unrelated layouts of it, the living ranks of the first, and the nodes."""
    num_layers, node_of = draw(st.integers(1, 4)), draw(nodes())
    src = draw(layouts(num_layers, draw(st.integers(1, 13)), node_of))
    dst = draw(layouts(num_layers, draw(st.sampled_from([src.chunk, 5])), node_of))
    dead = draw(st.sets(st.sampled_from(src.ranks), max_size=draw(st.sampled_from([0, 1, 1, 3]))))
    dst = replace(dst, zero=draw(st.sampled_from([src.zero, dst.zero])))
    return draw(spaces(num_layers)), src, dst, tuple(r for r in src.ranks if r not in dead), node_of


def nodes() -> st.SearchStrategy[NodeOf]:
    """1, 2, 4 or 8 ranks per node."""
    return st.sampled_from([1, 2, 4, 8]).map(lambda per_node: lambda rank: rank // per_node)


def numbered(space: Space) -> list[np.ndarray]:
    """The whole tensors, every element of the space with its own number: a value tells its coordinate."""
    arrays, first = [], 0
    for tensor in space.tensors:
        arrays.append(np.arange(first, first + tensor.numel).reshape(tensor.shape))
        first += tensor.numel
    return arrays


def elements(full: Sequence[np.ndarray], space: Space, tp: int, piece: Piece) -> np.ndarray:
    """The elements of a piece by slicing the whole tensor, without any box."""
    tensor, array = space.tensors[piece.tensor], full[piece.tensor]
    if tensor.split is not None:
        parts = min(tp, tensor.max_shards or tp)
        parts = max(n for n in range(1, parts + 1) if parts % n == 0 and (tensor.cuts or n) % n == 0)
        array = np.split(array, parts, axis=tensor.split)[piece.shard * parts // tp]
    return array.reshape(-1)[piece.start : piece.stop]


def storage(full: Sequence[np.ndarray], space: Space, layout: Layout, rank: int) -> np.ndarray:
    """What the flat storage of a rank must hold."""
    if rank not in layout.ranks:
        return np.zeros(0, dtype=np.int64)
    parts = [elements(full, space, layout.tp, p) for p in layout.storage(space, rank)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
