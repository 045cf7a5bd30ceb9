"""Linear attention over cut sequences is that of whole ones: every method, values and gradients; layouts and halos."""

from __future__ import annotations

import pytest

from tests.parallel import linear_bodies
from trainsys.comm.scan_time import all_scan_s, best_blocks, choose
from trainsys.comm.wires import mesh, star
from trainsys.parallel.sequence.linear import SCANS
from trainsys.sequence.layouts import Layout, contiguous, striped, zigzag
from trainsys.sequence.moves import moves
from trainsys.testing import RankPool

KINDS = ("none", "scalar", "diagonal", "delta")
LENGTHS = {1: (9,), 2: (5, 20), 3: (7, 0, 6), 4: (3, 17, 1, 8)}


@pytest.mark.parametrize("world_size", LENGTHS)
def test_every_method_is_exact(ranks: RankPool, world_size: int) -> None:
    methods = (*SCANS, "1", "3", "64")
    cases = [(m, kind, LENGTHS[world_size], packed) for kind in KINDS for packed in (False, True) for m in methods]
    results = ranks.run(linear_bodies.scans, world_size, cases)
    for result in results:
        for case, (error, _) in zip(cases, result, strict=True):
            assert error < 1e-12, case
        for i, (_, kind, _, _) in enumerate(cases):
            if kind != "delta":  # whose products round by the number of columns
                same = i - i % len(methods)
                assert result[i][1] == result[same][1], f"{cases[i]} differs in bits from {cases[same]}"


def test_layouts_of_positions(ranks: RankPool) -> None:
    odd: Layout = ((range(3, 9), range(1)), (), (range(9, 13), range(1, 3)))
    twice: Layout = ((range(13),), (range(2, 5), range(9, 11)), ())
    pairs = [
        (13, zigzag(13, 3), contiguous(13, 3)),
        (13, contiguous(13, 3), odd),
        (13, odd, twice),
        (2, contiguous(2, 3), zigzag(2, 3)),
        (17, striped(17, 3), zigzag(17, 3)),
        (17, ((range(1, 17, 4),), (range(0, 17, 2),), (range(3, 17, 4),)), striped(17, 3)),
    ]
    for errors in ranks.run(linear_bodies.layouts, 3, pairs):
        assert max(errors) < 1e-15


def test_moved_bytes() -> None:
    """Of a zigzag of two chunks per rank, cut in halves: rank 0 has chunks 0 and 3 and wants 0 and 1."""
    assert moves(zigzag(16, 2), contiguous(16, 2), 10) == [[0, 40], [40, 0]]
    assert moves(contiguous(13, 3), contiguous(13, 3), 10) == [[0] * 3] * 3


def test_halos(ranks: RankPool) -> None:
    cases = [((5, 4, 6), 3), ((2, 1, 1), 3), ((1, 0, 4), 3), ((0, 3, 0), 1), ((4, 4, 4), 0)]
    for errors in ranks.run(linear_bodies.halos, 3, cases):
        assert max(errors) < 1e-14


def test_the_best_number_of_blocks() -> None:
    size, state_bytes, gbps, latency_s = 6, 3e6, 0.01, 1e-3
    best = best_blocks(size, state_bytes, gbps, latency_s, 10_000)
    assert 1 < best < 10_000
    least = min(range(1, 400), key=lambda k: all_scan_s(size, state_bytes, gbps, latency_s, k))
    assert abs(best - least) <= 1
    assert best_blocks(2, state_bytes, gbps, latency_s, 99) == 1
    assert best_blocks(size, state_bytes, gbps, latency_s, 7) == 7


def test_the_wires_choose_the_method() -> None:
    """On a mesh each pair has a link, and states go there at once; on a star they share ports."""
    size, transition = 4 << 20, 16 << 10
    direct, chain = (
        choose(mesh(4, 0.0075, 2e-4), size, transition, 4096),
        choose(star(4, 0.0075, 2e-4), size, transition, 4096),
    )
    assert (direct.method, chain.method) == ("lasp2_direct", "all_scan")
    assert direct.seconds == pytest.approx(2e-4 + (size + transition) / 7.5e6)
    assert 20 < chain.blocks < 100
    assert size / 7.5e6 < chain.seconds < 1.1 * size / 7.5e6
    assert choose(mesh(2, 1.0, 1e-4), size, size, 64).method == "all_scan", "less traffic where it is no slower"


@pytest.mark.parametrize(
    ("layout", "method"), [("zigzag", "auto"), ("striped", "lasp2_direct"), ("contiguous", "all_scan")]
)
def test_a_hybrid_model(ranks: RankPool, layout: str, method: str) -> None:
    """Linear layers and a softmax one, each among the positions that suit it: logits, and gradients once added up."""
    for errors in ranks.run(linear_bodies.model, 3, layout, method):
        assert max(errors.values()) < 1e-11, errors


def test_alone_work_is_done_while_a_state_is_under_way() -> None:
    """Between start and end of a scan, forward and backward, lies what needs no other rank."""
    events = linear_bodies.order_of_events()
    forward, backward = events[: events.index("backward")], events[events.index("backward") + 1 :]
    assert forward == ["start", "alone", "wait"]
    assert backward == ["start", "alone", "wait"]
