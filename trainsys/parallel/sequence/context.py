"""Context parallelism: the cp teams of a replica hold the same weights and a part of every sequence each.

Whatever works on single positions runs as it is, on fewer of them; what depends on a position's number is told it
(`models/rows.py`). Only attention needs the other teams, by one of the methods registered in this package, and the
statistics of a mixture of experts. The teams run one lane of the schedule in lockstep, each rank with those of its tp
index.

    B = microbatch, S = whole sequence, S_i = positions of cp index i
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.models.decoder import Decoder
from trainsys.models.dropout import KeyedDropout
from trainsys.models.moe import MoE
from trainsys.models.rows import Rows
from trainsys.parallel.sequence.split import parts
from trainsys.parallel.tensor import TensorParallel
from trainsys.space.layout import Layout

_TAG = 1 << 29 | 15  # apart from those of other messages on a group of the same ranks


class ContextParallel:
    """The cp group of this rank and its part of every sequence.

    Args:
        group: contains every member.
        members: ranks in order of their cp index.
        seq_len: S.
    """

    def __init__(self, group: Group, members: Sequence[int], seq_len: int, device: torch.device) -> None:
        self.group, self.members, self.seq_len = group, tuple(members), seq_len
        self.index = self.members.index(group.rank)
        self.parts = parts(seq_len, self.size, self.index)
        self.rows = Rows(seq_len, torch.tensor([i for part in self.parts for i in part], device=device))

    @property
    def size(self) -> int:
        return len(self.members)

    def cut(self, whole: Tensor) -> Tensor:
        """[B, S] -> [B, S_i]."""
        return self.rows.take(whole, dim=1)

    def gather(self, x: Tensor) -> Tensor:
        """[n, B, S_i, ...] on each member -> [n, B, S, ...] on all, in the order of positions."""
        lengths = [len(early) + len(late) for early, late in self._cut]
        into = [x.new_empty((*x.shape[:2], length, *x.shape[3:])) for length in lengths]
        self._exchange([x.contiguous()] * self.size, into)
        halves = [part.split([len(chunk) for chunk in own], dim=2) for part, own in zip(into, self._cut, strict=True)]
        return torch.cat([early for early, _ in halves] + [late for _, late in reversed(halves)], dim=2)

    def scatter_sum(self, x: Tensor) -> Tensor:
        """Everybody's [n, B, S, ...] -> [n, B, S_i, ...], added in the order of cp indices."""
        leaving = [torch.cat([x[:, :, c.start : c.stop] for c in own], dim=2) for own in self._cut]
        return self._sum(leaving, [torch.empty_like(leaving[self.index]) for _ in self.members])

    def add_up(self, numbers: Tensor) -> Tensor:
        """Everybody's `numbers`, added in the order of cp indices."""
        return self._sum([numbers.contiguous()] * self.size, [torch.empty_like(numbers) for _ in self.members])

    @cached_property
    def _cut(self) -> list[tuple[range, range]]:
        """Of each member, its two chunks."""
        return [parts(self.seq_len, self.size, index) for index in range(self.size)]

    def _sum(self, leaving: list[Tensor], into: list[Tensor]) -> Tensor:
        """What everybody sends here, added in the order of cp indices; bfloat16 in float32."""
        self._exchange(leaving, into)
        dtype = into[0].dtype
        total = into[0].to(torch.float32 if dtype == torch.bfloat16 else dtype, copy=True)
        for part in into[1:]:
            total += part
        return total.to(dtype)

    def _exchange(self, leaving: list[Tensor], into: list[Tensor]) -> None:
        """Send ``leaving[i]`` to member i and receive ``into[i]`` from it; the own one is taken over."""
        into[self.index] = leaving[self.index]
        peers = [(rank, i) for i, rank in enumerate(self.members) if i != self.index]
        exchange(self.group, [(r, leaving[i], _TAG) for r, i in peers], [(r, into[i], _TAG) for r, i in peers])


Attend = Callable[[Tensor, Tensor, Tensor, ContextParallel], Tensor]


def cp_ranks(layout: Layout, rank: int) -> tuple[int, ...]:
    """The ranks with which `rank` shares every sequence, in order of cp indices: those of its replica and tp index."""
    stage, _, shard = layout.where(rank)
    first = layout.replica_of(rank)[0] * layout.cp
    return tuple(team[shard] for team in layout.stages[stage].teams[first : first + layout.cp])


def apply_context_parallel(model: Decoder, cp: ContextParallel, tp: TensorParallel | None, attend: Attend) -> None:
    """Let a stage, already in its tensor-parallel form, work on this rank's positions.

    Args:
        attend: what takes the place of `causal_attention`.
    """
    for name, module in model.named_modules():
        if "attend" in vars(module):
            module.attend = lambda q, k, v: attend(q, k, v, cp)
        if isinstance(module, MoE):
            module.counted = cp.add_up
        if "rows" in vars(module):
            inside_tp = isinstance(module, KeyedDropout) and name.startswith("layers.")
            module.rows = _of_tp(cp.rows, tp) if inside_tp else cp.rows


def _of_tp(rows: Rows, tp: TensorParallel | None) -> Rows:
    """What of them is on this tp rank between the regions: under sequence parallelism a slice."""
    if tp is None or not tp.sequence_parallel:
        return rows
    return Rows(rows.of, rows.which.chunk(tp.size)[tp.index])
