"""Reduce-scatter in tree order: every rank sends its tree nodes' slices to their owners, who add in the tree's order.

The volume equals a ring's when every rank's leaves form an aligned subtree. A region travels in parts, and only the
receives of the next few are posted: what arrives is added while it lies in the cache, and the buffers do not grow with
the model. A message that nobody has asked for yet waits at its sender.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.group import Group
from trainsys.comm.tree import Node, Tree, TreeSum

_PART = 1 << 18  # elements per message; measured: fewer cost more messages, more leave the cache
_MOST_PARTS = 1 << 13
_POSTED = 2  # parts whose receives are posted

Region = tuple[int, int]  # start and stop in the flat vector


class TreeReduceScatter:
    """The reduce-scatter of one bucket on one rank; receive buffers stay between calls.

    Args:
        group: contains every rank of `regions`.
        tree: shape of the sum.
        leaves: rank -> leaves that it contributes; every rank has some.
        regions: rank -> (start, stop) of what it owns in the flat vector.
    """

    def __init__(
        self,
        group: Group,
        tree: Tree,
        leaves: Mapping[int, Sequence[Node]],
        regions: Mapping[int, Region],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._group, self._tree = group, tree
        roots = {r: tree.roots(own) for r, own in leaves.items()}
        at = group.ranks.index(group.rank)
        peers = [group.ranks[(at + k) % group.size] for k in range(1, group.size)]  # not everybody to the same first
        self._own = roots[group.rank]
        self._parts = _parts(*regions[group.rank])
        self._from = [(peer, node) for peer in reversed(peers) for node in roots[peer]]
        theirs = {peer: _parts(*regions[peer]) for peer in peers}
        most = max(map(len, theirs.values()))
        self._to = [(peer, k, part) for k in range(most) for peer in peers for part in theirs[peer][k : k + 1]]
        width = max((stop - start for start, stop in self._parts), default=0)
        shape = (min(_POSTED, len(self._parts)), len(self._from), width)
        self._buffers = torch.empty(shape, dtype=dtype, device=device)

    def __call__(self, held: TreeSum[Tensor]) -> Tensor:
        """Sum over all ranks.

        Args:
            held: this rank's nodes [numel]; consumed.

        Returns:
            A vector [numel] of which this rank's region is the sum.
        """
        flats = [(node, held.nodes[node]) for node in self._own]
        result = flats[0][1]
        posted = [self._post(k) for k in range(len(self._buffers))]
        sends = [
            self._group.isend(flat[start:stop], peer, _tag(node, k))
            for peer, k, (start, stop) in self._to
            for node, flat in flats
        ]
        for k, (start, stop) in enumerate(self._parts):
            self._group.wait_all(posted[k])
            self._sum(k, [(node, flat[start:stop]) for node, flat in flats], result[start:stop])
            if k + _POSTED < len(self._parts):
                posted.append(self._post(k + _POSTED))
        self._group.wait_all(sends)
        return result

    def _post(self, k: int) -> list[Work]:
        """Begin receiving part `k` of this rank's region from everybody."""
        buffers = zip(self._from, self._inbox(k), strict=True)
        return [self._group.irecv(buffer, peer, _tag(node, k)) for (peer, node), buffer in buffers]

    def _inbox(self, k: int) -> list[Tensor]:
        start, stop = self._parts[k]
        return list(self._buffers[k % _POSTED, :, : stop - start])

    def _sum(self, k: int, own: list[tuple[Node, Tensor]], result: Tensor) -> None:
        """Add part `k`; the sum ends in `result`, which is one of `own`'s."""

        def add(left: Tensor, right: Tensor) -> Tensor:
            """Into `result` where one of them lies there: a sum of two has the bits of either order."""
            return right.add_(left) if right.data_ptr() == result.data_ptr() else left.add_(right)

        total: TreeSum[Tensor] = TreeSum(self._tree, add)
        for node, values in [*own, *((node, b) for (_, node), b in zip(self._from, self._inbox(k), strict=True))]:
            total.push(node, values)
        if total.total().data_ptr() != result.data_ptr():
            result.copy_(total.total())


def _parts(start: int, stop: int) -> list[Region]:
    """A region in parts, as far as tags can number them."""
    part = max(_PART, -(-(stop - start) // _MOST_PARTS))
    return [(a, min(a + part, stop)) for a in range(start, stop, part)]


def _tag(node: Node, part: int) -> int:
    """Unique per (node, part) in 31 bits: 4 of level, 14 of index, the rest of part."""
    assert node[1] < 1 << 14
    assert part < _MOST_PARTS
    return (part << 18) | (node[1] << 4) | node[0]
