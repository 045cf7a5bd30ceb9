"""ZeRO-2: each microbatch's gradient goes to its owners at once (Rajbhandari et al. 2020, arXiv:1910.02054, §5.2).

A bucket that streams keeps no sum of the whole: threads of its own take the peers' slices of the region owned here and
add them in the tree, while the next microbatch is computed. A rank holds two gradients (one on its way, one being made)
and of its region one arriving slice per peer besides the tree nodes. The price is volume: every microbatch crosses the
wire, where ZeRO-1 adds a rank's microbatches first. The tree is the same, and so are the bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.group import CommError, Group
from trainsys.comm.tree import Node, TreeSum
from trainsys.parallel.bucket import Bucket, BucketSpec

_STREAMED = 1 << 30  # apart from the group's other messages, which may be under way at the same time


class StreamedBucket(Bucket):
    """A bucket whose gradients leave as they come.

    Args:
        group: has two ranks or more.
        number: of the bucket on its rank, below 16: two buckets may share one group.
        order: rank -> its microbatches in the order of their backwards, in which its slices arrive.
    """

    def __init__(
        self, spec: BucketSpec, rank: int, group: Group, dtype: torch.dtype, device: torch.device, number: int,
        order: Callable[[int], Sequence[int]],
    ) -> None:  # fmt: skip
        super().__init__(spec, rank, group, dtype, device, fast=False)
        assert number < 16
        self.base = self.region.start  # `reduce` returns the region alone
        self._stream, self._number, self._order = group, number, order
        self._peers = [r for r in spec.ranks if r != rank]
        self._leaving: list[tuple[Work, Tensor]] = []
        self._step = _Step(TreeSum(spec.tree, Tensor.add_))

    def begin(self) -> None:
        """Start the step's receivers, one per peer; those of an abandoned step end with its groups."""
        self._leaving, self._step = [], _Step(TreeSum(self.spec.tree, Tensor.add_))
        for peer in self._peers:
            threading.Thread(target=self._receive, args=(peer, self._step), daemon=True, name=f"from-{peer}").start()

    def add(self, leaf: Node, value: Tensor) -> None:
        """Send every owner its slice of `value`, once the gradient before has left."""
        self._leave()
        for peer in self._peers:
            start, stop = self.spec.regions[peer]
            if stop > start:
                part = value[start:stop]
                self._leaving.append((self._stream.isend(part, peer, self._tag(leaf)), part))
        if self._region_numel:
            self._step.push(leaf, value[self.region].clone())

    def reduce(self) -> Tensor:
        """The sum of the region owned here, [stop - start]."""
        self._leave()
        for error in [self._step.ended.get() for _ in self._peers]:
            if error is not None:
                raise error
        return self._step.total.total() if self._region_numel else self._empty()

    @property
    def _region_numel(self) -> int:
        return self.region.stop - self.region.start

    def _empty(self) -> Tensor:
        return torch.empty(self._region_numel, dtype=self._dtype, device=self._device)

    def _leave(self) -> None:
        self._stream.wait_all([work for work, _ in self._leaving])
        self._leaving = []

    def _receive(self, peer: int, step: _Step) -> None:
        """Body of a receiver. It always has the peer's next slice posted, so that no peer ever waits for another."""
        try:
            for leaf in self._leaves(peer) if self._region_numel else ():
                buffer = self._empty()
                self._stream.wait(self._stream.irecv(buffer, peer, self._tag(leaf)))
                step.push(leaf, buffer)
        except CommError as error:
            step.ended.put(error)
        else:
            step.ended.put(None)

    def _leaves(self, peer: int) -> list[Node]:
        """The peer's leaves as they will arrive: by backward; of a tied tensor the input part first."""
        place = {microbatch: i for i, microbatch in enumerate(self._order(peer))}
        return sorted(self.spec.leaves[peer], key=lambda leaf: place[leaf[1] % self.spec.tree.stride])

    def _tag(self, leaf: Node) -> int:
        assert leaf[0] == 0
        return _STREAMED | (leaf[1] << 4) | self._number


class _Step:
    """What the receivers of one step share with the thread that computes."""

    def __init__(self, total: TreeSum[Tensor]) -> None:
        self.total, self._lock = total, threading.Lock()
        self.ended: SimpleQueue[CommError | None] = SimpleQueue()  # one entry per receiver

    def push(self, leaf: Node, value: Tensor) -> None:
        with self._lock:
            self.total.push(leaf, value)
