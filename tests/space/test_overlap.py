"""Overlaps are worked out per kind of tensor, and are those of every tensor of the kind."""

from __future__ import annotations

from trainsys.config import ParallelConfig
from trainsys.space.build import build_layout
from trainsys.space.index import Index, flat_index
from trainsys.space.overlap import Overlap, Overlaps
from trainsys.space.tensor import LogicalTensor, Space

EXPERTS, CHUNK = 16, 10
SPACE = Space(tuple(LogicalTensor(f"w{e}", (8, 6), 0, 0, expert=e, num_experts=EXPERTS) for e in range(EXPERTS)))


def test_one_answer_serves_all_experts_of_a_class() -> None:
    old = build_layout(ParallelConfig(dp=4, ep=2), [1], range(4), CHUNK, lambda r: 0)
    new = build_layout(ParallelConfig(dp=2, tp=2, ep=2), [1], range(4), CHUNK, lambda r: 0)
    mine, others = Index(SPACE, new, lambda r: 0), Index(SPACE, old, lambda r: 0)
    overlaps = Overlaps(mine, others, CHUNK, into=False)
    found: dict[int, list[Overlap]] = {}
    for ward, deal, cell, _ in mine.stored(0):
        if ward == 0:
            _, found[deal.tensor] = overlaps.of(deal, new.where(ward)[2], cell)
    assert list(found) == list(range(EXPERTS // 2))  # those of its class
    assert len({id(answer) for answer in found.values()}) == 1
    for tensor in found:
        dealt = others.deals[tensor]
        alone = [(f.box, f.shard, f.cell, f.run) for f in others.find(dealt, SPACE.tensors[tensor].local_box(2, 0))]
        assert [(o.box, o.shard, o.cell, o.run) for o in found[tensor]] == alone


def test_lead_counts_along_the_destination() -> None:
    """Rows 4 to 8 of an 8·6 tensor are the second shard of two: there they begin at 0, in the whole at 24."""
    whole = build_layout(ParallelConfig(dp=1), [1], range(1), CHUNK, lambda r: 0)
    halves = build_layout(ParallelConfig(dp=1, tp=2), [1], range(2), CHUNK, lambda r: 0)
    space = Space((LogicalTensor("w", (8, 6), 0, 0),))
    one, two = Index(space, whole, lambda r: 0), Index(space, halves, lambda r: 0)
    (deal,) = two.deals
    for into, lead in ((False, 0), (True, 24)):
        _, (overlap,) = Overlaps(two, one, CHUNK, into).of(deal, 1, 0)
        assert overlap.box.start == (4, 0)
        assert overlap.lead == lead == flat_index((overlap.run if into else overlap.own).box, overlap.box.start)
        assert sum(part.numel for part in overlap.parts) == 24
        assert max(part.numel for part in overlap.parts) <= CHUNK
