"""ZeRO-2: each microbatch's gradient goes to its owners at once (Rajbhandari et al. 2020, arXiv:1910.02054, §5.2).

A bucket that streams keeps no sum of the whole: threads of the rank's stream take the peers' slices of the region owned
here and add them in the tree, while the next microbatch is computed. A rank holds two gradients (one on its way, one
being made) and of its region one arriving slice per peer besides the tree nodes. The price is volume: every microbatch
crosses the wire, where ZeRO-1 adds a rank's microbatches first. The tree is the same, and so are the bits.

Under ZeRO-3 a bucket is one block's, and each block's gradient leaves as soon as its backward is done: the two
gradients, and the slice arriving from each peer, are of one block only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.group import CommError, Group
from trainsys.comm.tree import Node, TreeSum
from trainsys.parallel.bucket import Bucket, BucketSpec
from trainsys.parallel.order import Order

_STREAMED = 1 << 30  # apart from the group's other messages, which may be under way at the same time


class Stream:
    """The gradients that leave a rank as they come, and those that arrive.

    Args:
        rank: this one.
        order: of everybody's backwards.
    """

    def __init__(self, rank: int, order: Order) -> None:
        self._rank, self._order = rank, order
        self.buckets: list[StreamedBucket] = []
        self._from: dict[int, list[Arrival]] = {}  # peer -> what it sends here in every step
        self._leaving: dict[Group, list[tuple[Work, Tensor]]] = {}
        self._ended: SimpleQueue[CommError | None] = SimpleQueue()  # one entry per receiver
        self._receiving = 0

    def begin(self) -> None:
        """Start the step's receivers, one per peer; those of an abandoned step end with its groups."""
        if not self._from:
            peers = sorted({r for bucket in self.buckets for r in bucket.spec.ranks} - {self._rank})
            self._from = {peer: list(self._arrivals(peer)) for peer in peers}
        self._leaving, self._ended = {}, SimpleQueue()
        totals = {bucket: bucket.total for bucket in self.buckets}
        for peer, arrivals in self._from.items():
            args = (peer, arrivals, totals, self._ended)
            threading.Thread(target=_receive, args=args, daemon=True, name=f"from-{peer}").start()
        self._receiving = len(self._from)

    def send(self, bucket: StreamedBucket, leaf: Node, value: Tensor) -> None:
        """Begin sending every owner its slice of `value`."""
        group, leaving = bucket.group, self._leaving.setdefault(bucket.group, [])
        for peer, (start, stop) in bucket.spec.regions.items():
            if peer != self._rank and stop > start:
                part = value[start:stop]
                leaving.append((group.isend(part, peer, bucket.tag(leaf)), part))

    def leave(self) -> None:
        """Wait until all that was sent has left: room for the next gradient."""
        for group, leaving in self._leaving.items():
            group.wait_all([work for work, _ in leaving])
        self._leaving = {}

    def finish(self) -> None:
        """Wait until all that leaves has left and all that arrives is added."""
        self.leave()
        while self._receiving:
            with self.buckets[0].group.stamps.waiting():
                error = self._ended.get()
            self._receiving -= 1
            if error is not None:
                raise error

    def _arrivals(self, peer: int) -> Iterator[Arrival]:
        """The peer's slices as they will arrive: by backward; of a tensor used twice in one, the input part first."""
        shared = [bucket for bucket in self.buckets if peer in bucket.spec.ranks and bucket.region_numel]
        cp_index = self._order.cp_index(peer)
        for microbatch, blocks in self._order.backwards(peer):
            for bucket in shared:
                own = [(microbatch, cp_index)]
                for made, index in self._order.together(peer, microbatch) if bucket.spec.experts else own:
                    for part, uses in enumerate(bucket.spec.uses):
                        if any(block in blocks for block in uses):
                            yield bucket, bucket.spec.leaf(made, part, index)


class StreamedBucket(Bucket):
    """A bucket whose gradients leave as they come; `group` has two ranks or more."""

    group: Group

    def __init__(
        self, spec: BucketSpec, rank: int, group: Group, dtype: torch.dtype, device: torch.device, stream: Stream
    ) -> None:
        super().__init__(spec, rank, group, dtype, device, fast=False)
        self.base = self.region.start  # `reduce` returns the region alone
        self.region_numel = self.region.stop - self.region.start
        self.total = _Total(TreeSum(spec.tree, Tensor.add_))
        self._stream = stream
        stream.buckets.append(self)

    def begin(self) -> None:
        self.total = _Total(TreeSum(self.spec.tree, Tensor.add_))

    def add(self, leaf: Node, value: Tensor) -> None:
        self._stream.send(self, leaf, value)
        if self.region_numel:
            self.total.push(leaf, value[self.region].clone())

    def reduce(self) -> Tensor:
        """The sum of the region owned here, [stop - start]."""
        self._stream.finish()
        return self.total.sum() if self.region_numel else self.empty()

    def empty(self) -> Tensor:
        """Room for one slice of the region owned here."""
        return torch.empty(self.region_numel, dtype=self._dtype, device=self._device)

    def tag(self, leaf: Node) -> int:
        assert leaf[0] == 0 and leaf[1] < 1 << 14, leaf
        return _STREAMED | self.spec.number << 14 | leaf[1]


class _Total:
    """One step's sum of one bucket, shared by its receivers and the thread that computes."""

    def __init__(self, total: TreeSum[Tensor]) -> None:
        self._total, self._lock = total, threading.Lock()

    def push(self, leaf: Node, value: Tensor) -> None:
        with self._lock:
            self._total.push(leaf, value)

    def sum(self) -> Tensor:
        return self._total.total()


Arrival = tuple[StreamedBucket, Node]


def _receive(
    peer: int,
    arrivals: Sequence[Arrival],
    totals: Mapping[StreamedBucket, _Total],
    ended: SimpleQueue[CommError | None],
) -> None:
    """Body of a receiver. It always has the peer's next slice posted, so that no peer ever waits for another."""
    try:
        for bucket, leaf in arrivals:
            buffer = bucket.empty()
            bucket.group.wait(bucket.group.irecv(buffer, peer, bucket.tag(leaf)))
            totals[bucket].push(leaf, buffer)
    except CommError as error:
        ended.put(error)
    else:
        ended.put(None)
