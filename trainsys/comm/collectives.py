"""Collectives that follow the wires: gather, reduce-scatter and all-reduce over datapaths, all-to-all, all-scan.

Tensors have any shape, dtype and number of elements, the same on all members; what is cut is cut nearly equally
(`torch.tensor_split`), and what is empty is not sent. Results do not depend on timing: who adds what to what is the
datapath's order. Inputs are never changed; results are new and flat.

    n = members, piece = elements / n of what is reduced or exchanged
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm import tags
from trainsys.comm.datapath import Datapath
from trainsys.comm.datapath_choice import Candidates
from trainsys.comm.datapath_time import ALPHA_S
from trainsys.comm.flow import Gather
from trainsys.comm.flow_back import Reduce
from trainsys.comm.group import CommError, Group
from trainsys.comm.routed import Routed, route, route_back
from trainsys.comm.scan_time import MOST_BLOCKS, best_blocks
from trainsys.comm.wires import Wires

_KEPT = 256  # sizes that are remembered


class _Ready(NamedTuple):
    """A datapath, ready for tensors of one size: `ends` says where chunks begin in the whole, and where it ends."""

    routed: Routed
    ends: tuple[int, ...]

    def chunk(self, whole: Tensor, number: int) -> Tensor:
        return whole[self.ends[number] : self.ends[number + 1]]

    def offsets(self, chunk: int) -> tuple[int, int]:
        return 0, self.ends[chunk + 1] - self.ends[chunk]

    def own(self, member: int) -> range:
        """Its chunks."""
        return range(member * self.routed.slices, (member + 1) * self.routed.slices)

    def piece(self, member: int) -> slice:
        """Where its chunks are in the whole."""
        own = self.own(member)
        return slice(self.ends[own.start], self.ends[own.stop])


class _Message(NamedTuple):
    what: str
    work: Work


class Collectives:
    """Collectives of one group, one at a time; every member calls the same ones in the same order.

    Args:
        group: contains every member.
        members: global ranks by member number.
        wires: of the members, numbered as they are.
        method: of `DATAPATHS`; ``auto`` takes for each collective and size what `Candidates.choose` says.
        channel: of this and the next one, as of `Gather`: what else is under way in the group has others.

    Raises:
        ValueError: for wires of another number of ranks, an unknown method, or one that does not suit the wires.
    """

    def __init__(
        self, group: Group, members: Sequence[int], wires: Wires, method: str = "auto", channel: int = 0
    ) -> None:
        if wires.num_ranks != len(members):
            raise ValueError(f"wires of {wires.num_ranks} ranks cannot serve {len(members)} members")
        self._group, self._members, self._wires, self._method = group, tuple(members), wires, method
        self._me, self._size, self._channel = self._members.index(group.rank), len(members), channel
        self._tag, self._candidates = tags.channel(channel), Candidates(wires)
        if method != "auto":
            self._candidates.check(method)
        self._ready = lru_cache(_KEPT)(self._make_ready)

    def chosen(self, collective: str, piece_bytes: int) -> str:
        """The method that all_gather, reduce_scatter or all_reduce takes for pieces of so many bytes."""
        return self._candidates.choose(collective, piece_bytes) if self._method == "auto" else self._method

    def all_gather(self, own: Tensor) -> Tensor:
        """Everybody's tensor, one after the other: [n · elements].

        Raises:
            CommError: naming the step and the rank that is waited for; the group is torn.
        """
        own = _flat(own)
        whole = own.new_empty(self._size * own.numel())
        whole[self._me * own.numel() : (self._me + 1) * own.numel()] = own
        self._gather("all_gather", whole)
        return whole

    def reduce_scatter(self, data: Tensor) -> Tensor:
        """Piece i of the sum over members, of member i: [piece], of which the first ``elements % n`` have one more.

        Raises:
            CommError: as `all_gather`.
        """
        parts, _ = self._reduce("reduce_scatter", _flat(data))
        return parts[0] if len(parts) == 1 < self._size else torch.cat(parts)

    def all_reduce(self, data: Tensor) -> Tensor:
        """The sum over members: [elements]. A reduce-scatter, then an all-gather.

        Raises:
            CommError: as `all_gather`.
        """
        data = _flat(data)
        parts, piece = self._reduce("all_reduce", data)
        whole = torch.empty_like(data)
        torch.cat(parts, out=whole[piece])
        self._gather("all_reduce", whole)
        return whole

    def all_to_all(self, data: Tensor) -> Tensor:
        """Of every member the piece of this one, one after the other: [n · piece]. All pairs at once, each directly.

        Raises:
            CommError: naming the rank that is waited for; the group is torn.
        """
        pieces = _flat(data).tensor_split(self._size)
        whole = data.new_empty(self._size, pieces[self._me].numel())
        whole[self._me] = pieces[self._me]
        others = [(self._me + k) % self._size for k in range(1, self._size)]
        # receives first and in the other order: a peer's notice does not wait behind payload
        come = [self._receive(whole[peer], peer, 0, "all_to_all") for peer in reversed(others)]
        left = [self._send(pieces[peer], peer, 0, "all_to_all") for peer in others]
        self._finish(come)
        self._finish(left)
        return whole.view(-1)

    def all_scan(self, own: Tensor, decay: float = 1, blocks: int = 0) -> Tensor:
        """``state[i] = decay · state[i-1] + own[i]``, of this member: [elements]. Passed on block by block.

        After ZeCO (arXiv 2507.01004), with the state after this member where that has the one before it.

        Args:
            decay: of the state before; a whole number for tensors of whole numbers.
            blocks: 0: the best number by the model of time.

        Raises:
            CommError: naming the block and the rank that is waited for; the group is torn.
        """
        own = _flat(own)
        blocks = max(1, min(blocks or self.scan_blocks(own.nbytes), own.numel()))
        before, after, state = self._me - 1, self._me + 1, own if self._me == 0 else torch.empty_like(own)
        parts, sent = list(zip(state.tensor_split(blocks), own.tensor_split(blocks), strict=True)), []
        names = [f"all_scan, block {block}" for block in range(blocks)]
        come = [self._receive(parts[k][0], before, k, names[k]) for k in range(blocks)] if before >= 0 else []
        for block, (part, given) in enumerate(parts):
            if come:
                self._finish([come[block]])
                torch.add(given, part, alpha=decay, out=part)
            if after < self._size:
                sent.append(self._send(part, after, block, names[block]))
        self._finish(sent)
        return state if come else own.clone()

    def scan_blocks(self, nbytes: int) -> int:
        """How many blocks an all-scan of `nbytes` is passed on in."""
        neighbours = [pair for pair in pairwise(range(self._size)) if pair in self._wires.routes]
        slowest = min((self._wires.link(*pair).gbps for pair in neighbours), default=1.0)
        return best_blocks(self._size, nbytes, slowest, ALPHA_S, MOST_BLOCKS)

    def _gather(self, collective: str, whole: Tensor) -> None:
        """Everybody's piece of `whole` to where it belongs."""
        if self._size == 1:
            return
        ready = self._ready(collective, False, whole.numel(), whole.element_size())
        own = [ready.chunk(whole, number) for number in ready.own(self._me)]
        flow = Gather(
            self._group, self._members, ready.routed, own, ready.offsets, self._channel,
            lambda number: ready.chunk(whole, number),
        )  # fmt: skip
        flow.complete()

    def _reduce(self, collective: str, data: Tensor) -> tuple[list[Tensor], slice]:
        """The sums of this member's chunks, and where they belong."""
        if self._size == 1:
            return [data], slice(0, data.numel())
        ready = self._ready(collective, True, data.numel(), data.element_size())
        gives = dict.fromkeys(range(len(ready.ends) - 1), (0, 1))
        flow = Reduce(
            self._group, self._members, ready.routed, gives, ready.offsets, data.dtype, device=data.device,
            channel=self._channel + 1, lent=True,
        )  # fmt: skip
        for number in gives:
            flow.feed(number, ready.chunk(data, number))
        sums = flow.result()
        return [sums[number] for number in ready.own(self._me)], ready.piece(self._me)

    def _make_ready(self, collective: str, back: bool, elements: int, element_size: int) -> _Ready:
        method = self.chosen(collective, -(-elements // self._size) * element_size)
        path = self._candidates.turned(method) if back else self._candidates.there(method)
        ends = _ends(path, elements)

        def runs(chunk: int) -> int:
            return int(ends[chunk] < ends[chunk + 1])

        return _Ready(route_back(path, runs) if back else route(path, runs), ends)

    def _receive(self, into: Tensor, member: int, number: int, what: str) -> _Message:
        what = f"{what}: from rank {self._members[member]}"
        with _named(what):
            return _Message(what, self._group.irecv(into, self._members[member], self._tag | number))

    def _send(self, data: Tensor, member: int, number: int, what: str) -> _Message:
        what = f"{what}: to rank {self._members[member]}"
        with _named(what):
            return _Message(what, self._group.isend(data, self._members[member], self._tag | number))

    def _finish(self, messages: Sequence[_Message]) -> None:
        """Wait for all. Raises CommError naming the one that is waited for."""
        done: list[int] = []
        try:
            self._group.wait_all([message.work for message in messages], done.append)
        except CommError as error:
            raise CommError(f"{messages[len(done)].what}: {error}") from None


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except CommError as error:
        raise CommError(f"{what}: {error}") from None


def _flat(data: Tensor) -> Tensor:
    return data.detach().contiguous().view(-1)


def _ends(path: Datapath, elements: int) -> tuple[int, ...]:
    """Every member's piece is cut into slices, each nearly equally."""
    sizes = [size for piece in _shares(elements, path.size) for size in _shares(piece, path.slices)]
    return tuple(accumulate(sizes, initial=0))


def _shares(elements: int, parts: int) -> list[int]:
    """As `torch.tensor_split` cuts."""
    each, more = divmod(elements, parts)
    return [each + (part < more) for part in range(parts)]
