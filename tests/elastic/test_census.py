"""The census: every way in which a transition can go wrong is noticed, whatever the layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

import pytest
import torch

from trainsys.config import ModelConfig, ParallelConfig
from trainsys.elastic.census import check_census, take_census
from trainsys.elastic.messages import Census
from trainsys.models.geometry import resolve, split_layers, tensors
from trainsys.parallel.state import FlatState
from trainsys.space.build import build_layout, succeed
from trainsys.space.coverage import LostError, check_covered
from trainsys.space.layout import Layout
from trainsys.space.places import piece_places, storage_places
from trainsys.space.tensor import SLOTS, Space

MODEL = resolve(ModelConfig(vocab_size=24, dim=8, num_layers=4, num_heads=4, num_kv_heads=2, max_seq_len=8, ffn_dim=12))
SPACE = Space(tensors(MODEL))
STEP = 7
States = dict[int, FlatState]


def node(rank: int) -> int:
    return rank // 2


def mesh(dp: int, tp: int, pp: int, zero: int) -> Layout:
    parallel = ParallelConfig(dp=dp, tp=tp, pp=pp, zero=zero)
    return build_layout(parallel, split_layers(4, pp), range(dp * tp * pp), 16, node)


def values(dtype: torch.dtype = torch.float32) -> dict[tuple[str, int], torch.Tensor]:
    """The whole training state, as one device would hold it."""
    generator = torch.Generator().manual_seed(1)
    return {
        (slot, ordinal): torch.randn(t.shape, generator=generator, dtype=dtype)
        for slot in SLOTS
        for ordinal, t in enumerate(SPACE.tensors)
    }


def spread(layout: Layout, whole: dict[tuple[str, int], torch.Tensor]) -> States:
    """What every rank of `layout` stores when all is right."""
    states = {}
    for rank in layout.ranks:
        state = FlatState(layout.storage(SPACE, rank), torch.float32, torch.device("cpu"))
        for piece, offset in storage_places(SPACE, layout, rank):
            for place in piece_places(SPACE.tensors[piece.tensor], layout.tp, piece, offset):
                for slot in SLOTS:
                    box = tuple(slice(a, b) for a, b in zip(place.box.start, place.box.stop, strict=True))
                    state.run(slot, place).copy_(whole[slot, piece.tensor][box])
        states[rank] = state
    return states


def evidence(src: Layout, old: States, dst: Layout, new: States, alive: Collection[int]) -> dict[int, Census]:
    ranks = sorted({*alive, *dst.ranks})
    empty = FlatState((), torch.float32, torch.device("cpu"))
    return {
        r: take_census(SPACE, r, src, alive, old.get(r), dst, new.get(r, empty), STEP if r in alive else 0)
        for r in ranks
    }


LAYOUTS = [
    (2, 1, 2, 1),
    (4, 1, 1, 0),
    (1, 1, 4, 0),
    (2, 2, 1, 1),
    (1, 2, 2, 0),
    (3, 1, 2, 1),
    (2, 4, 1, 1),
    (1, 4, 2, 0),
]


@pytest.mark.parametrize("to", LAYOUTS, ids=str)
@pytest.mark.parametrize("came", LAYOUTS, ids=str)
def test_a_right_transition_passes(came: tuple[int, int, int, int], to: tuple[int, int, int, int]) -> None:
    src, dst, whole = mesh(*came), mesh(*to), values()
    reports = evidence(src, spread(src, whole), dst, spread(dst, whole), src.ranks)
    check_census(SPACE, reports, True, STEP)


def test_the_dead_are_vouched_for_by_their_mirrors() -> None:
    src, whole = mesh(2, 1, 2, 1), values()
    alive = tuple(r for r in src.ranks if r != 2)
    dst = succeed(src, ParallelConfig(dp=3, zero=1), (4,), alive, node)
    old = {r: s for r, s in spread(src, whole).items() if r in alive}
    check_covered(SPACE, src, alive)
    check_census(SPACE, evidence(src, old, dst, spread(dst, whole), alive), True, STEP)
    with pytest.raises(LostError, match="no living rank"):
        check_covered(SPACE, src, [r for r in alive if r != src.peers_of[2][0]])


# -- what can go wrong -----------------------------------------------------------------------------------------------


def stale(states: States) -> None:
    """A moment that one rank has not updated: an owned piece from the step before."""
    states[1].slots["exp_avg"][:16] *= 0.9


def swapped(states: States) -> None:
    master = states[1].slots["master"]
    master[[2, 3]] = master[[3, 2]]


def flipped(states: States) -> None:
    """One bit, the lowest, of one element."""
    bits = states[0].slots["exp_avg_sq"].view(torch.int32)
    bits[5] ^= 1


def sign(states: States) -> None:
    states[0].slots["exp_avg"][5] *= -1


def shifted(states: States) -> None:
    """A box that begins one element too late."""
    master = states[0].slots["master"]
    master[:16] = master[:16].roll(1)


def zeroed(states: States) -> None:
    """A piece that never came."""
    states[2].slots["master"][-16:] = 0


def exchanged(states: States) -> None:
    """Two slots of one piece in each other's place, as when a fused buffer is taken apart wrongly."""
    slots = states[0].slots
    slots["master"][:16], slots["exp_avg"][:16] = slots["exp_avg"][:16].clone(), slots["master"][:16].clone()


def halves(states: States) -> None:
    """Two neighbouring pieces in each other's place, as when a fused tensor is split in the wrong order."""
    for slot in SLOTS:
        values = states[0].slots[slot]
        values[:32] = values[:32].roll(16)


DAMAGE = [stale, swapped, flipped, sign, shifted, zeroed, exchanged, halves]


@pytest.mark.parametrize("to", [(2, 1, 2, 1), (4, 1, 1, 0), (2, 2, 1, 1)], ids=str)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_values_are_noticed(damage: Callable[[States], None], to: tuple[int, int, int, int]) -> None:
    src, dst, whole = mesh(1, 1, 4, 0), mesh(*to), values()
    new = spread(dst, whole)
    damage(new)
    with pytest.raises(ValueError, match=r"^census: .*(changed in transit|holds another)"):
        check_census(SPACE, evidence(src, spread(src, whole), dst, new, src.ranks), True, STEP)


def test_a_replica_that_differs_is_noticed_even_at_a_fresh_start() -> None:
    dst, whole = mesh(4, 1, 1, 0), values()
    new = spread(dst, whole)
    flipped({0: new[3]})
    reports = {r: take_census(SPACE, r, None, (), None, dst, new[r], 0) for r in dst.ranks}
    with pytest.raises(ValueError, match=r"rank \d holds another"):
        check_census(SPACE, reports, False, 0)
    check_census(SPACE, {r: take_census(SPACE, r, None, (), None, dst, s, 0) for r, s in spread(dst, whole).items()},
                 False, 0)  # fmt: skip


def test_a_mirror_that_differs_is_noticed() -> None:
    dst, whole = mesh(2, 1, 2, 1), values()
    new = spread(dst, whole)
    mirror = dst.peers_of[0][0]
    new[mirror].slots["exp_avg"][-1] += 1
    with pytest.raises(ValueError, match=f"rank {mirror} holds another"):
        check_census(SPACE, evidence(dst, spread(dst, whole), dst, new, dst.ranks), True, STEP)


def test_a_copy_within_a_team_that_differs_is_noticed() -> None:
    """Of a norm, which all tp ranks hold, and of a key/value head, which two neighbours hold."""
    dst, whole = mesh(1, 4, 1, 0), values()
    for name, other in (("layers.0.attention_norm.weight", 3), ("layers.0.attention.wk.weight", 3)):
        new = spread(dst, whole)
        piece = next(p for p in new[other].pieces if SPACE.tensors[p.tensor].name == name)
        new[other].view("exp_avg", piece)[0] += 1
        with pytest.raises(ValueError, match=f"census: rank 3 holds another {name} than its owner"):
            check_census(SPACE, evidence(dst, spread(dst, whole), dst, new, dst.ranks), True, STEP)


def test_a_shared_head_outlives_its_first_holder() -> None:
    """Another tp rank vouches for what the lost rank and its mirror held, where it holds a copy."""
    src, whole = dataclasses.replace(mesh(1, 4, 1, 0), mirrors=()), values()
    old = {r: s for r, s in spread(src, whole).items() if r != 0}
    kept = [t for t in SPACE.tensors if t.copies(4) > 1]
    reports = evidence(src, old, src, spread(src, whole), tuple(old))
    for ordinal in (SPACE.ordinal[t.name] for t in kept):
        for slot in SLOTS:
            seen = sum(c.before.get((ordinal, slot), 0) for c in reports.values()) % 2**64
            assert seen == sum(c.after.get((ordinal, slot), 0) for c in reports.values()) % 2**64


def test_a_missing_rank_is_noticed() -> None:
    src, whole = mesh(2, 1, 2, 1), values()
    reports = evidence(src, spread(src, whole), src, spread(src, whole), src.ranks)
    del reports[3]
    with pytest.raises(ValueError, match=r"has \d+ of \d+ elements owned"):
        check_census(SPACE, reports, True, STEP)


def test_a_rank_at_another_step_is_noticed() -> None:
    src, whole = mesh(2, 1, 2, 1), values()
    reports = evidence(src, spread(src, whole), src, spread(src, whole), src.ranks)
    reports[2] = dataclasses.replace(reports[2], step=0)
    with pytest.raises(ValueError, match="rank 2 has seen 0 steps of 7"):
        check_census(SPACE, reports, True, STEP)


def test_a_rank_that_joins_has_seen_no_step() -> None:
    src, dst, whole = mesh(2, 1, 1, 1), mesh(4, 1, 1, 1), values()
    reports = evidence(src, spread(src, whole), dst, spread(dst, whole), src.ranks)
    assert [reports[r].step for r in dst.ranks] == [STEP, STEP, None, None]
    check_census(SPACE, reports, True, STEP)
