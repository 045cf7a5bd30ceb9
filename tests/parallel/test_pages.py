"""Pages of flat tensors: given back exactly when nothing alive is on them."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from trainsys.parallel.release import PAGE, Pages, empty_pages

NUMEL = 20 * PAGE // 4 + 123


def touched(alive: torch.Tensor, shift: int) -> set[int]:
    """Pages on which an element is alive."""
    return set(((torch.nonzero(alive).flatten() * 4 + shift) // PAGE).tolist())


@pytest.mark.parametrize("shifted", [0, 40])
@pytest.mark.parametrize("seed", range(5))
def test_a_page_goes_with_its_last_element(seed: int, shifted: int) -> None:
    rng = random.Random(seed)
    flat = empty_pages(NUMEL + shifted, torch.float32)[shifted:]
    pages, alive = Pages(flat, False), torch.zeros(NUMEL, dtype=torch.bool)
    borders = sorted({0, NUMEL, *(rng.randrange(NUMEL) for _ in range(40))})
    runs = list(pairwise(borders))
    for _ in range(2):
        rng.shuffle(runs)
        for first, stop in runs:
            pages.add(first, stop - first)
            flat[first:stop] = 1.0
            alive[first:stop] = True
            assert pages.resident_bytes == PAGE * len(touched(alive, flat.data_ptr() % PAGE))
        rng.shuffle(runs)
        for first, stop in runs:
            pages.remove(first, stop - first)
            alive[first:stop] = False
            held = touched(alive, flat.data_ptr() % PAGE)
            assert pages.resident_bytes == PAGE * len(held)
            assert bool((flat[alive] == 1.0).all())
            at = torch.arange(NUMEL) * 4 + flat.data_ptr() % PAGE
            gone = ~torch.isin(at // PAGE, torch.tensor(sorted(held)))
            assert bool((flat[gone] == 0.0).all())


def test_pages_that_others_may_share_stay() -> None:
    block = torch.ones(8 * PAGE // 4)
    flat = block[16 : 6 * PAGE // 4 + 5]
    pages = Pages(flat, True)
    full = pages.resident_bytes
    assert flat.nbytes <= full <= flat.nbytes + 2 * PAGE
    pages.remove(0, flat.numel())
    assert 0 < pages.resident_bytes <= 2 * PAGE
    assert bool((block[:16] == 1).all() and (block[6 * PAGE // 4 + 5 :] == 1).all())


def test_nothing_to_store() -> None:
    assert Pages(empty_pages(0, torch.float32), True).resident_bytes == 0
