"""Synthesised datapaths: right on any wires, near the bound on lopsided ones, quick on many ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.synthesis import cases, measure, ring_s, snake
from trainsys.comm.datapath import Datapath
from trainsys.comm.datapath_bound import bound_s
from trainsys.comm.datapath_check import check, check_backwards
from trainsys.comm.datapath_time import seconds
from trainsys.comm.datapaths import DATAPATHS, synthesis
from trainsys.comm.datapaths.greedy import synthesise
from trainsys.comm.topology import Link
from trainsys.comm.wires import Edge, Wires, mesh, star, torus, two_level

NBYTES = 4e6


def slower(wires: Wires, *edges: Edge) -> Wires:
    """With those edges at half their rate."""
    links = {edge: Link(link.gbps / (2 if edge in edges else 1), 0.0) for edge, link in wires.links.items()}
    return replace(wires, links=links)


@pytest.mark.parametrize(
    ("wires", "most"),
    [
        (mesh(4, 0.025), 1.01),
        (mesh(6, 0.025), 1.01),
        (slower(mesh(4, 0.025), (0, 1)), 1.03),
        (slower(mesh(4, 0.025), (0, 1), (1, 0)), 1.03),
        (slower(mesh(5, 0.025), (0, 1), (2, 3), (4, 1)), 1.05),
        (slower(mesh(8, 0.025), (0, 1)), 1.05),
        (star(4, 0.025), 1.05),
        (two_level(2, 2, 0.05, 0.0075), 1.05),
        (torus((4, 4), 0.025), 1.05),
    ],
)
def test_near_the_bound(wires: Wires, most: float) -> None:
    path = DATAPATHS["synthesis"](wires, 0)
    assert 1.0 - 1e-9 <= seconds(path, wires, NBYTES) / bound_s(wires, NBYTES) < most
    back = synthesis.generate(wires.turned(), 0).backwards()
    check_backwards(back)
    assert seconds(back, wires, NBYTES) / bound_s(wires, NBYTES, "reduce_scatter") < most + 0.02


def test_beats_every_fixed_datapath_on_a_lopsided_mesh() -> None:
    wires = slower(mesh(4, 0.025), (0, 1))
    fixed = min(seconds(DATAPATHS[name](wires, 0), wires, NBYTES) for name in ("ring", "k_ring", "direct", "sliced"))
    assert seconds(synthesis.generate(wires), wires, NBYTES) < 0.7 * fixed


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 3))
def test_any_connected_wires_are_served(seed: int, n: int, slices: int) -> None:
    dice = np.random.default_rng(seed)
    links = {(i, (i + 1) % n): Link(float(dice.uniform(0.1, 1)), float(dice.uniform(0, 1e-3))) for i in range(n)}
    for a, b in dice.integers(0, n, (n, 2)).tolist():
        if a != b:
            links[a, b] = Link(float(dice.uniform(0.1, 1)), 0.0)
    wires = Wires("any", n, links, (0,) * n)
    path = synthesis.generate(wires, slices)
    check(path)
    check_backwards(path.backwards())
    assert seconds(path, wires, NBYTES) >= bound_s(wires, NBYTES)


def test_the_same_each_time_and_named_where_impossible() -> None:
    wires = two_level(2, 2, 0.05, 0.0075)
    once, again = (synthesise(wires, 3, 1e5, 1e-4, seed=7) for _ in range(2))
    assert np.array_equal(once, again)
    cut = replace(mesh(3, 1.0), links={e: link for e, link in mesh(3, 1.0).links.items() if e[1] != 2})
    with pytest.raises(ValueError, match=r"nothing leads to rank 2 from all who have chunk \d"):
        synthesis.generate(cut)
    with pytest.raises(ValueError, match="direct needs a way between all ranks"):
        DATAPATHS["direct"](torus((3, 3), 1.0), 0)


def test_shared_wires_are_crossed_once_per_chunk() -> None:
    wires = two_level(2, 4, 0.5, 0.0075)
    path = synthesis.generate(wires, 2)
    across = [
        (chunk, wires.hosts[dst]) for _, chunk, src, dst in path.sends.tolist() if wires.hosts[src] != wires.hosts[dst]
    ]
    assert len(set(across)) == len(across) == path.num_chunks


def test_a_torus_of_128() -> None:
    wires = torus((8, 16), 50.0, 1e-6)
    path = synthesis.generate(wires, 1)
    assert seconds(path, wires, 2**24, alpha_s=0) / bound_s(wires, 2**24) < 1.05


def test_rows_of_the_bench() -> None:
    rows = [measure(wires) for wires in cases(64)]
    assert [row["wires"] for row in rows][:3] == ["torus 8x8", "torus 4x4x4", "grid 8x8"]
    assert all(1.0 <= row["to_bound"] < 1.15 for row in rows)
    assert rows[0]["over_ring"] > 3
    broken = replace(torus((8, 8), 1.0), links={(0, 1): Link(1.0, 0.0), (1, 0): Link(1.0, 0.0)})
    assert ring_s(broken) is None


@pytest.mark.parametrize("shape", [(2, 3), (6, 5), (2, 3, 4), (4, 4, 8)])
def test_snake_is_a_cycle_of_neighbours(shape: tuple[int, ...]) -> None:
    order, wires = snake(shape), torus(shape, 1.0, wrap=False)
    assert sorted(order) == list(range(wires.num_ranks))
    assert all(pair in wires.links for pair in zip(order, order[1:] + order[:1], strict=True))


def test_a_path_is_named_after_its_method() -> None:
    assert isinstance(synthesis.generate(mesh(2, 1.0)), Datapath)
    assert synthesis.generate(mesh(2, 1.0)).name == "synthesis"
