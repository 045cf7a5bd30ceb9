"""Running a reduce-scatter beside computation: contributions go home over a datapath and are added up on the way.

What is added to what, and in which order, is the datapath's, whatever arrives first. Contributions that wait for
nothing leave `AHEAD` steps early, so that a wire is not idle while somebody adds.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm import tags
from trainsys.comm.flow import AHEAD, CHECK_S, Offsets, named
from trainsys.comm.group import CommError, Group
from trainsys.comm.routed import Leg, Routed, Span

Combine = Callable[[int, Span, Tensor, Tensor], None]  # chunk, runs, what is here (changed in place), what has come


def add(chunk: int, runs: Span, here: Tensor, come: Tensor) -> None:
    """Sums in the type of what is here."""
    here += come


class Reduce:
    """A reduce-scatter under way.

    Args:
        group: contains every member.
        members: global ranks by member number.
        routed: from `route_back`.
        gives: of each chunk that this member contributes to: which runs.
        kept: dtype in which is summed.
        combine: of two partial results.
        blank: one to which nobody has contributed yet, of some runs of a chunk; None: zeros.
        wire: dtype of the messages; None: `kept`.
        channel: as of `Gather`.
        lent: what is fed stays as it is, and sums are made in the memory of what comes. `combine` must not mind which
            of its tensors is which, and everybody gives all of every chunk.
    """

    def __init__(
        self, group: Group, members: Sequence[int], routed: Routed, gives: Mapping[int, Span], offsets: Offsets,
        kept: torch.dtype, combine: Combine = add, blank: Callable[[int, Span], Tensor] | None = None,
        wire: torch.dtype | None = None, device: torch.device | str = "cpu", channel: int = 1,
        lent: bool = False,
    ) -> None:  # fmt: skip
        self._group, self._members, self._routed, self._offsets = group, members, routed, offsets
        self._me, self._tag, self._combine, self._gives = (
            members.index(group.rank),
            tags.channel(channel),
            combine,
            gives,
        )
        self._blank_of, self._kept, self._wire, self._device = blank or self._zeros, kept, wire or kept, device
        self._sends, self._arrivals = routed.sends[self._me], routed.arrivals[self._me]
        self._span = {leg.chunk: (leg.first, leg.last) for legs in self._sends for leg in legs}
        assert not lent or self._wire == kept, routed.name
        self._partial: dict[int, Tensor] = {}
        self._lent: set[int] | None = set() if lent else None  # chunks of which the partial sum is still the caller's
        self._awaited = Counter(leg.chunk for legs in self._arrivals for leg in legs)
        self._at: Leg | None = None  # what the courier waits for
        self._fed = threading.Condition()
        self._progress = group.advance(self._carry())

    def feed(self, chunk: int, data: Tensor) -> None:
        """This member's contribution to `chunk`: the runs that it said it gives, flat. Changed in place unless lent."""
        whole = self._whole(chunk)
        if self._gives[chunk] != whole:
            offsets, given = self._offsets(chunk), self._gives[chunk]
            base, padded = offsets[whole[0]], self._blank(chunk)
            padded[offsets[given[0]] - base : offsets[given[1]] - base] = data
            data = padded
        with self._fed:
            if self._lent is not None:
                self._lent.add(chunk)
            self._partial[chunk] = data
            self._fed.notify()

    def result(self) -> dict[int, Tensor]:
        """This member's own chunks, summed, when all has come.

        Raises:
            CommError: naming the step and the rank that is waited for.
        """
        try:
            while self._progress.next():
                pass
        except CommError as error:
            raise named(error, self._routed, self._members, self._me, self._at) from None
        return self._partial

    def _whole(self, chunk: int) -> Span:
        """The runs of it that are summed here."""
        return self._span.get(chunk, (0, len(self._offsets(chunk)) - 1))

    def _blank(self, chunk: int) -> Tensor:
        return self._blank_of(chunk, self._whole(chunk))

    def _zeros(self, chunk: int, runs: Span) -> Tensor:
        offsets = self._offsets(chunk)
        return torch.zeros(offsets[runs[1]] - offsets[runs[0]], dtype=self._kept, device=self._device)

    def _carry(self) -> Iterator[None]:
        posted = [[self._receive(leg) for leg in legs] for legs in self._arrivals[: AHEAD + 1]]
        leaving: list[dict[Leg, Work]] = [{} for _ in self._sends]
        for step, legs in enumerate(self._arrivals):
            for leg in self._sends[step]:
                if leg not in leaving[step]:
                    leaving[step][leg] = self._send(leg)
            self._send_early(leaving, step + 1)
            for leg, (work, come) in zip(legs, posted[step], strict=True):
                self._finish(leg, work)
                self._add(leg, come)
            posted[step].clear()
            if step + AHEAD + 1 < len(self._arrivals):
                posted.append([self._receive(leg) for leg in self._arrivals[step + AHEAD + 1]])
            if step:
                self._finish_all(leaving[step - 1])
        for works in leaving:
            self._finish_all(works)
        for chunk in range(self._me * self._routed.slices, (self._me + 1) * self._routed.slices):
            self._here(chunk)
        yield

    def _send_early(self, leaving: Sequence[dict[Leg, Work]], first: int) -> None:
        """What is here and waits for nothing, of the next steps: less than the receiver is ready for."""
        for step in range(first, min(first + AHEAD, len(leaving))):
            for leg in self._sends[step]:
                if leg not in leaving[step] and not self._awaited[leg.chunk] and leg.chunk in self._partial:
                    leaving[step][leg] = self._send(leg)

    def _finish(self, leg: Leg, work: Work) -> None:
        self._at = leg
        self._group.finish([work])

    def _finish_all(self, works: dict[Leg, Work]) -> None:
        for leg, work in works.items():
            self._finish(leg, work)
        works.clear()

    def _receive(self, leg: Leg) -> tuple[Work, Tensor]:
        offsets, self._at = self._offsets(leg.chunk), leg
        come = torch.empty(offsets[leg.last] - offsets[leg.first], dtype=self._wire, device=self._device)
        return self._group.irecv(come, self._members[leg.src], self._tag | leg.chunk), come

    def _send(self, leg: Leg) -> Work:
        leaving, self._at = self._here(leg.chunk).to(self._wire), leg
        del self._partial[leg.chunk]
        return self._group.isend(leaving, self._members[leg.dst], self._tag | leg.chunk)

    def _add(self, leg: Leg, come: Tensor) -> None:
        here, offsets = self._here(leg.chunk), self._offsets(leg.chunk)
        self._awaited[leg.chunk] -= 1
        if self._lent is not None and leg.chunk in self._lent:
            assert len(come) == len(here), self._routed.name
            self._lent.remove(leg.chunk)
            self._partial[leg.chunk], here, come = come, come, here
        base = offsets[self._whole(leg.chunk)[0]]
        part = here[offsets[leg.first] - base : offsets[leg.last] - base]
        self._combine(leg.chunk, (leg.first, leg.last), part, come)

    def _here(self, chunk: int) -> Tensor:
        """The partial sum, when this member's own contribution is in it."""
        if chunk not in self._partial and self._gives.get(chunk, (0, 0)) == (0, 0):
            self._partial[chunk] = self._blank(chunk)
        with self._fed:
            while chunk not in self._partial:
                if not self._fed.wait(timeout=CHECK_S) and (self._group.torn or self._group.frozen):
                    raise CommError(f"group {self._group.name} was aborted")
        return self._partial[chunk]
