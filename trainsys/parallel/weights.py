"""ZeRO-3: weights are whole only while their block computes (Rajbhandari et al. 2020, arXiv:1910.02054, §5.3).

A rank keeps, in compute precision, the pieces that it owns. A block (embedding, layer or head) is gathered before its
forward and again before its backward, and freed after each, while the next one is on its way. Replicas need not run in
lockstep, nor have equally many microbatches, so there is no collective: the schedule says in which order every peer
uses its blocks, and a thread per peer sends the own pieces in that order. A message waits at its sender, in the owned
pieces themselves, until the peer posts its receive.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from queue import SimpleQueue

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import Work
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from trainsys.comm.group import CommError, Group
from trainsys.comm.stamps import Stamps
from trainsys.parallel.bucket import Bucket
from trainsys.parallel.state import FlatState
from trainsys.space.layout import Piece

_GATHERED = 3 << 28  # apart from the group's other messages
_TURNS = 1 << 12  # after which the numbers of a peer's gathers begin again
_POSTED = 2  # sends to one peer that wait at once


def hollow(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `shape` without memory behind it, to be given some by `Weights`."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    tensor.untyped_storage().resize_(0)
    return tensor


class Block:
    """One block's weights on one rank.

    Args:
        buckets: that its parameters lie in; their flat vectors, end to end, are what arrives.
        params: tensor ordinal -> the parameter with which this block uses it.
    """

    def __init__(self, buckets: Sequence[Bucket], params: Mapping[int, nn.Parameter]) -> None:
        self.buckets, self._params = tuple(buckets), list(params.values())
        self.gathered = any(bucket.group is not None for bucket in buckets)  # else all is owned here, and stays
        pieces = [piece for bucket in buckets for piece in bucket.spec.pieces]
        self._sizes = [piece.numel for piece in pieces]
        self.numel = sum(self._sizes)
        places: dict[int, list[tuple[Piece, int]]] = {ordinal: [] for ordinal in params}
        for i, piece in enumerate(pieces):
            places[piece.tensor].append((piece, i))
        self._places = [[i for _, i in sorted(own)] for own in places.values()]

    def split(self, flat: Tensor) -> Iterator[tuple[Bucket, Tensor]]:
        """The buckets with their parts of what arrives."""
        yield from zip(self.buckets, flat.split([bucket.spec.numel for bucket in self.buckets]), strict=True)

    @torch.no_grad()
    def fill(self, arrived: Tensor) -> None:
        """Make the parameters whole from the buckets' flat vectors; autograd does not notice that they were away."""
        parts = arrived.split(self._sizes)
        for p, places in zip(self._params, self._places, strict=True):
            p.untyped_storage().resize_(p.numel() * p.element_size())
            with _unsafe_preserve_version_counter(p):
                torch.cat([parts[i] for i in places], out=p.view(-1))

    def free(self) -> None:
        """Give the memory back; saved references to the parameters stay valid for the next `fill`."""
        for p in self._params:
            p.untyped_storage().resize_(0)

    @property
    def whole(self) -> bool:
        return all(p.untyped_storage().nbytes() for p in self._params)


@dataclass
class _Arrival:
    """A block on its way here."""

    block: int
    values: Tensor
    works: dict[Group, list[Work]]


class Weights:
    """The weights of one rank under ZeRO-3: what it owns, and the blocks that are whole for a moment.

    Args:
        buckets: of the rank; none has tensors of two blocks.
        params: part (one block) -> tensor ordinal -> parameter, of the blocks that the rank computes.
        uses: rank -> the parts in the order in which it computes with them in a step, forward and backward.

    Attributes:
        peak: most copies of a block that were here at once since the engine was made, arriving ones included.
    """

    def __init__(
        self, rank: int, dtype: torch.dtype, device: torch.device, buckets: Sequence[Bucket],
        params: Mapping[range, Mapping[int, nn.Parameter]], uses: Callable[[int], Sequence[range]],
    ) -> None:  # fmt: skip
        self._rank, self._dtype, self._device = rank, dtype, device
        self._of_block: dict[int, list[Bucket]] = {}
        for bucket in buckets:
            for block in bucket.spec.blocks:
                self._of_block.setdefault(block, []).append(bucket)
        self.blocks = {part.start: Block(self._of_block[part.start], own) for part, own in params.items()}
        self._uses = [part.start for part in uses(rank)]
        peers = sorted({r for bucket in buckets for r in bucket.spec.ranks} - {rank})
        self._gathers_of = {peer: _gathers([part.start for part in uses(peer)]) for peer in peers}
        lasting = {k.spec.number: k for block in self.blocks.values() if block.gathered for k in block.buckets}
        self._owned = {n: self._empty(k.region.stop - k.region.start) for n, k in lasting.items()}
        self.peak = 0
        self._arriving: _Arrival | None = None
        self._coming: Iterator[tuple[int, int]] = iter(())  # (number, block) of the gathers not yet posted
        self._next: deque[int] = deque()  # blocks to be used, the one in use first
        self._ended: SimpleQueue[CommError | None] = SimpleQueue()  # one entry per serving thread
        self._serving = 0

    def _empty(self, numel: int) -> Tensor:
        return torch.empty(numel, dtype=self._dtype, device=self._device)

    def load(self, state: FlatState, masters: Tensor) -> None:
        """Write the owned pieces, and the blocks that are all owned here, from the masters; purely local.

        Args:
            masters: laid out as `state` says.
        """
        for block in self.blocks.values():
            for bucket in block.buckets if block.gathered else ():
                self._read(bucket, state, masters, self._owned[bucket.spec.number])
            if not block.gathered:
                values = self._empty(block.numel)
                for bucket, part in block.split(values):
                    self._read(bucket, state, masters, part)
                block.fill(values)

    @staticmethod
    def _read(bucket: Bucket, state: FlatState, masters: Tensor, into: Tensor) -> None:
        at = 0
        for piece in bucket.owned_pieces():
            start = state.offsets[piece]
            into[at : at + piece.numel].copy_(masters[start : start + piece.numel])
            at += piece.numel

    # -- one step ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start serving the peers and fetch the first block; whatever an abandoned step left is dropped."""
        for block in self.blocks.values():
            if block.gathered:
                block.free()
        self._next, self._ended = deque(self._uses), SimpleQueue()
        self._coming = iter([(i, b) for i, b in enumerate(_gathers(self._uses)) if self.blocks[b].gathered])
        for peer, gathers in self._gathers_of.items():
            args = (peer, gathers, self._ended)
            threading.Thread(target=self._serve, args=args, daemon=True, name=f"weights-{peer}").start()
        self._serving = len(self._gathers_of)
        self._arriving = self._post()

    @contextmanager
    def whole(self, part: range) -> Iterator[None]:
        """While the context lasts, the weights of the one block of `part` are whole. They come in the order of `uses`.

        A block that is used twice in a row (by the forward and the backward of one microbatch) is gathered once.

        Raises:
            CommError: an owner died or the step was aborted.
        """
        (block,) = part
        weights = self.blocks[block]
        if weights.gathered and not weights.whole:
            self._take(block)
        yield
        used = self._next.popleft()
        assert used == block, f"block {block} is used where the schedule has {used}"
        if weights.gathered and (not self._next or self._next[0] != block):
            weights.free()

    def finish(self) -> None:
        """Wait until every peer has had all that it needs: from then on the owned pieces may change."""
        stamps = next((b.group.stamps for block in self.blocks.values() for b in block.buckets if b.group), Stamps(1))
        while self._serving:
            with stamps.waiting():
                error = self._ended.get()
            self._serving -= 1
            if error is not None:
                raise error

    def _take(self, block: int) -> None:
        """Turn what has arrived into `block`, and send for the next."""
        arrival = self._arriving
        assert arrival is not None and arrival.block == block
        for group, works in arrival.works.items():
            group.wait_all(works)
        self.blocks[block].fill(arrival.values)
        self._count()
        self._arriving = arrival = None
        self._arriving = self._post()
        self._count()

    def _count(self) -> None:
        whole = sum(block.gathered and block.whole for block in self.blocks.values())
        self.peak = max(self.peak, whole + (self._arriving is not None))

    def _post(self) -> _Arrival | None:
        """Begin receiving the block that comes next; None after the last."""
        for number, block in self._coming:
            arrival = _Arrival(block, self._empty(self.blocks[block].numel), {})
            for bucket, values in self.blocks[block].split(arrival.values):
                for peer, (start, stop) in bucket.spec.regions.items():
                    if bucket.group is not None and peer != self._rank and stop > start:
                        work = bucket.group.irecv(values[start:stop], peer, _tag(number, bucket))
                        arrival.works.setdefault(bucket.group, []).append(work)
                values[bucket.region].copy_(self._owned[bucket.spec.number])
            return arrival
        return None

    def _serve(self, peer: int, gathers: Sequence[int], ended: SimpleQueue[CommError | None]) -> None:
        """Body of a serving thread. The peer's next pieces always wait for it, so that it never waits for our turn."""
        posted: deque[tuple[Group, Work]] = deque()
        try:
            for number, block in enumerate(gathers):
                for group, values, tag in self._own_part(peer, number, block):
                    if len(posted) == _POSTED:
                        first, work = posted.popleft()
                        first.wait(work)
                    posted.append((group, group.isend(values, peer, tag)))
            for group, work in posted:
                group.wait(work)
        except CommError as error:
            ended.put(error)
        else:
            ended.put(None)

    def _own_part(self, peer: int, number: int, block: int) -> Iterator[tuple[Group, Tensor, int]]:
        """What this rank owns of a peer's block: (group, values, tag)."""
        for bucket in self._of_block.get(block, ()):
            if bucket.group is None or peer not in bucket.spec.ranks:
                continue
            values = self._owned[bucket.spec.number]
            if len(values):
                yield bucket.group, values, _tag(number, bucket)


def _gathers(uses: Sequence[int]) -> list[int]:
    """The blocks in the order in which they are gathered: what is used twice in a row comes once."""
    return [block for block, _ in groupby(uses)]


def _tag(number: int, bucket: Bucket) -> int:
    """Unique in 31 bits among the messages that may be under way between two ranks."""
    return _GATHERED | (number % _TURNS) << 16 | bucket.spec.number
