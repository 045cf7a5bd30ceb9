"""The reduction tree: the same bits however the leaves are split, and few nodes for aligned splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.comm.tree import Node, Tree, TreeSum


def leaf_value(node: Node) -> torch.Tensor:
    """Numbers of very different size, so that any other order of additions shows."""
    rng = np.random.default_rng(node[1])
    return torch.from_numpy((rng.standard_normal(16) * 10.0 ** rng.integers(-6, 6, 16)).astype(np.float32))


def by_recursion(tree: Tree) -> torch.Tensor:
    """The tree's definition: halves of the padded leaf range, invalid leaves left out."""
    size = 1
    while size < tree.width:
        size *= 2
    total = 1
    while total < size * tree.parts:
        total *= 2

    def node(first: int, stop: int) -> torch.Tensor | None:
        if stop - first == 1:
            valid = first // size < tree.parts and first % size < tree.width
            return leaf_value((0, first)) if valid else None
        left, right = node(first, (first + stop) // 2), node((first + stop) // 2, stop)
        return left if right is None else right if left is None else left + right

    result = node(0, total)
    assert result is not None
    return result


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 21), st.integers(1, 3), st.integers(1, 6), st.randoms(use_true_random=False))
def test_any_split_gives_the_same_bits(width: int, parts: int, ranks: int, random: object) -> None:
    tree = Tree(width, parts)
    leaves = [tree.leaf(m, p) for p in range(parts) for m in range(width)]
    assert len(set(leaves)) == len(leaves)
    shares: list[list[Node]] = [[] for _ in range(ranks)]
    for leaf in leaves:
        random.choice(shares).append(leaf)  # type: ignore[attr-defined]
    arriving = []
    for share in shares:
        random.shuffle(share)  # type: ignore[attr-defined]
        held: TreeSum[torch.Tensor] = TreeSum(tree, lambda a, b: a.add_(b))
        for leaf in share:
            if not held.absorb(leaf, leaf_value(leaf).add_):
                held.push(leaf, leaf_value(leaf))
        assert sorted(held.nodes, key=lambda n: n[1] << n[0]) == tree.roots(share)
        arriving += list(held.nodes.items())
    random.shuffle(arriving)  # type: ignore[attr-defined]
    total: TreeSum[torch.Tensor] = TreeSum(tree, lambda a, b: a.add_(b))
    for node, value in arriving:
        total.push(node, value)
    assert torch.equal(total.total(), by_recursion(tree))


def test_the_order_matters_for_these_leaves() -> None:
    """The data above can tell orders apart: a running sum has other bits."""
    tree = Tree(13)
    running = leaf_value(tree.leaf(0))
    for m in range(1, 13):
        running = running + leaf_value(tree.leaf(m))
    assert not torch.equal(running, by_recursion(tree))


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 11, 16])
@pytest.mark.parametrize("parts", [1, 2])
def test_an_aligned_block_has_one_root(width: int, parts: int) -> None:
    tree = Tree(width, parts)
    for part in range(parts):
        size = 1
        while size <= tree.stride:
            for first in range(0, width, size):
                block = [tree.leaf(m, part) for m in range(first, min(first + size, width))]
                assert len(tree.roots(block)) == 1, (first, size)
            size *= 2


def test_roots_of_unaligned_blocks() -> None:
    assert Tree(8).roots([(0, 1), (0, 2), (0, 3), (0, 4)]) == [(0, 1), (1, 1), (0, 4)]
    assert Tree(6).roots([(0, 4), (0, 5)]) == [(2, 1)], "leaves 6 and 7 do not exist"
    assert Tree(6).roots([(0, m) for m in range(6)]) == [(3, 0)]


def test_missing_and_repeated_leaves_are_noticed() -> None:
    held: TreeSum[int] = TreeSum(Tree(4), lambda a, b: a + b)
    held.push((0, 0), 1)
    with pytest.raises(AssertionError, match="leaves are missing"):
        held.total()
    with pytest.raises(AssertionError):
        held.push((0, 0), 1)
