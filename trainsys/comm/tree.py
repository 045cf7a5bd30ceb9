"""One fixed binary tree over the microbatches of a step: sums that do not depend on who computed which part.

Leaf i is the contribution of global microbatch i. A node (level, k) is the sum of the leaves
``[k·2^level, (k+1)·2^level)``. Whoever holds all valid leaves of a node adds them in the tree's order, so any split of
the leaves over ranks ends in the same bits. The volume a rank sends equals a ring's when its leaves form one aligned
subtree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Node = tuple[int, int]  # (level, index)


@dataclass(frozen=True)
class Tree:
    """The shape: `parts` runs of `width` valid leaves, each run starting at a power-of-two boundary.

    A plain tensor has one part. A tied embedding has two: its gradient as input table (part 0) and as head (part 1).
    """

    width: int
    parts: int = 1

    @property
    def stride(self) -> int:
        return 1 << max(self.width - 1, 0).bit_length()

    @property
    def levels(self) -> int:
        return max(self.parts * self.stride - 1, 0).bit_length()

    def leaf(self, microbatch: int, part: int = 0) -> Node:
        return (0, part * self.stride + microbatch)

    def empty(self, node: Node) -> bool:
        """True when no valid leaf lies under `node`."""
        level, k = node
        first, stop = k << level, (k + 1) << level
        return not any(max(first, p * self.stride) < min(stop, p * self.stride + self.width) for p in range(self.parts))

    def roots(self, leaves: Iterable[Node]) -> list[Node]:
        """The nodes that a rank holding exactly `leaves` ends with, in tree order."""
        held: TreeSum[None] = TreeSum(self, lambda a, b: None)
        for leaf in leaves:
            held.push(leaf, None)
        return sorted(held.nodes, key=lambda n: n[1] << n[0])


class TreeSum(Generic[T]):
    """Partial sums of the nodes held so far; merges as soon as two siblings meet.

    Args:
        tree: the shape.
        add: returns left + right (may write into left).
    """

    def __init__(self, tree: Tree, add: Callable[[T, T], T]) -> None:
        self.tree, self._add = tree, add
        self.nodes: dict[Node, T] = {}

    def push(self, node: Node, value: T) -> None:
        """Add the sum of one node; no node may be pushed twice."""
        while node[0] < self.tree.levels:
            level, k = node
            sibling = (level, k ^ 1)
            if sibling in self.nodes:
                other = self.nodes.pop(sibling)
                value = self._add(value, other) if k % 2 == 0 else self._add(other, value)
            elif not self.tree.empty(sibling):
                break
            node = (level + 1, k // 2)
        assert node not in self.nodes
        self.nodes[node] = value

    def absorb(self, node: Node, add_to: Callable[[T], T]) -> bool:
        """Push a node whose value need not exist: `add_to` returns a sibling's plus it. False if none is held.

        A sum of two has the bits of either order.
        """
        other = self.nodes.pop((node[0], node[1] ^ 1), None)
        if other is None:
            return False
        self.push((node[0] + 1, node[1] // 2), add_to(other))
        return True

    def total(self) -> T:
        """The sum of every valid leaf; all must have been pushed."""
        ((node, value),) = self.nodes.items()
        assert node[0] == self.tree.levels, f"the tree ends in node {node}: leaves are missing"
        return value
