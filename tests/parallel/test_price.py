"""The price of a plan of attention against what can be said by hand."""

from __future__ import annotations

import pytest

from trainsys.comm.datapath_time import CROWD
from trainsys.comm.fluid import Message, play
from trainsys.comm.topology import Link
from trainsys.comm.wires import Wires, mesh, star, two_level
from trainsys.sequence.layouts import LAYOUTS
from trainsys.sequence.mask import Mask
from trainsys.sequence.methods import METHODS
from trainsys.sequence.place import Place
from trainsys.sequence.price import Price, Rates, Shape, price
from trainsys.sequence.select import choices

FAST = Rates(1e18, 1e18, call_s=0.0, alpha_s=0.0, copied=float("inf"))
FLOATS = Shape(batch=1, element=4, kept=4)


def place(wires: Wires, heads: tuple[int, int] = (8, 8), seq_len: int = 1024, mask: Mask | None = None) -> Place:
    return Place(LAYOUTS["zigzag"](seq_len, wires.num_ranks), mask or Mask(), wires, *heads, 64, 64)


def of(method: str, where: Place, rates: Rates = FAST) -> Price:
    return price(METHODS[method](where), where, FLOATS, rates)


def test_messages_alone_of_ring_and_ulysses() -> None:
    where = place(mesh(4, 0.01), mask=Mask(causal=False))
    keys = 256 * 8 * 128 * 4  # bytes of a member's keys and values
    ring = of("ring", where)
    assert ring.forward_bytes == 4 * 3 * keys
    assert ring.forward_s == pytest.approx(3 * keys / 1e7)
    assert ring.backward_bytes == 4 * 6 * keys
    assert ring.forward_bound_s == pytest.approx(ring.forward_s)
    ulysses = of("ulysses", where)
    assert ulysses.forward_bytes == ulysses.backward_bytes == 4 * 3 * 256 * 2 * 64 * 4 * 4
    assert ulysses.forward_s == pytest.approx(256 * 2 * 64 * 4 * 4 / 1e7)


def test_bytes_on_each_wire() -> None:
    where = place(two_level(2, 2, 1.0, 0.1))
    for method in ("ring", "direct", "ulysses", "hybrid", "token_ring"):
        priced = of(method, where)
        assert set(priced.edges) == set(where.wires.links)
        into = sum(count for (_, b), count in priced.edges.items() if b < 4)
        assert into == pytest.approx(priced.forward_bytes + priced.backward_bytes), "each byte ends at one rank"


def test_heads_that_do_not_divide() -> None:
    priced = of("ulysses", place(mesh(5, 0.01), heads=(8, 2), seq_len=1000))
    queries, keys = [1, 2, 1, 2, 2], [1, 1, 1, 1, 1]
    width = [q * 64 + k * 128 + q * 64 for q, k in zip(queries, keys, strict=True)]
    assert priced.forward_bytes == sum(800 * one * 4 for one in width)


def test_computation_is_shared_by_cores_and_hides_messages() -> None:
    where = place(mesh(4, 1e6), mask=Mask(causal=False))
    flops = 4.0 * 8 * 1024 * 1024 * 64
    alone = of("direct", where, Rates(1e9, 1e18, 0.0, 0.0, copied=float("inf")))
    assert alone.forward_s == pytest.approx(flops / 4 / 1e9, rel=1e-3)
    two = of("direct", where, Rates(1e9, 1e18, 0.0, 0.0, cores=2.0, copied=float("inf")))
    assert two.forward_s == pytest.approx(flops / 2 / 1e9, rel=1e-3)
    slow = place(mesh(4, 0.01), mask=Mask(causal=False))
    messages = of("ring", slow).forward_s
    rates = Rates(flops / 4 / (1.5 * messages), 1e18, 0.0, 0.0, copied=float("inf"))
    assert of("ring", slow, rates).forward_s == pytest.approx(1.5 * messages, rel=0.01), (
        "four thirds of a step hide one"
    )


def test_shared_ports_lose_and_pairs_share_a_connection() -> None:
    where = place(star(4, 0.01), mask=Mask(causal=False))
    keys = 256 * 8 * 128 * 4
    assert of("ring", where).forward_s == pytest.approx(3 * keys / 1e7)
    assert of("direct", where).forward_s == pytest.approx(3 * keys / 1e7 / CROWD)
    links, routes = {(0, 1): Link(1e-9, 0.0)}, [((0, 1),)] * 2
    messages = [Message(0, 1.0), Message(1, 1.0)]
    assert play(messages, routes, links, 0.0) == pytest.approx([2.0, 2.0])
    assert play(messages, routes, links, 0.0, connections=[0, 0]) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize(("heads", "wires", "best"), [
    ((8, 8), mesh(4, 0.0125), "ulysses"),
    ((8, 2), mesh(4, 0.0125), "sliced"),
    ((8, 8), star(4, 0.025), "ulysses"),
])  # fmt: skip
def test_what_was_measured_to_be_best_is_chosen(heads: tuple[int, int], wires: Wires, best: str) -> None:
    rates = Rates(1.27e11, 1.4e11, 2.6e-5, 6e-5, cores=2.0)
    assert choices(place(wires, heads), FLOATS, rates, canonical=False)[0].method == best


def test_what_comes_first_goes_home_first() -> None:
    where = place(mesh(4, 0.01), mask=Mask(causal=False))
    journey = METHODS["sliced"](where).backward
    there = {(leg.chunk, leg.dst): leg.step for leg in journey.there.legs}
    back = {(leg.chunk, leg.src): leg.step for leg in journey.back.legs}
    assert there == back
    assert len(set(back.values())) > 1
    flops = 2.5 * 4.0 * 8 * 256 * 1024 * 64
    messages = of("sliced", where).backward_s
    computed = of("sliced", where, Rates(1e18, flops / (2 * messages), 0.0, 0.0, copied=float("inf"))).backward_s
    assert computed < 2.3 * messages, "all but the last slices' messages are hidden"
