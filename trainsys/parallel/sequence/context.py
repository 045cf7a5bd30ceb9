"""Context parallelism: the cp teams of a replica hold the same weights and a part of every sequence each.

Whatever works on single positions runs as it is, on fewer of them; what depends on a position's number is told it
(`models/rows.py`). Only attention needs the other teams (`attend.py`), and the statistics of a mixture of experts. The
teams run one lane of the schedule in lockstep, each rank with those of its tp index.

    B = microbatch, S = whole sequence, S_i = positions of cp index i
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.comm.tags import STATISTICS
from trainsys.comm.wires import Wires, star
from trainsys.models.decoder import Decoder
from trainsys.models.dropout import KeyedDropout
from trainsys.models.moe import MoE
from trainsys.models.rows import Rows
from trainsys.parallel.tensor import TensorParallel
from trainsys.sequence.layouts import LAYOUTS
from trainsys.sequence.price import Rates
from trainsys.space.layout import Layout


class ContextParallel:
    """The cp group of this rank and its part of every sequence.

    Args:
        group: contains every member.
        members: ranks in order of their cp index.
        seq_len: S.
        layout: a name of `LAYOUTS`.
        wires: among the members; None: a switch between them.
        method, canonical: of attention; see `CpAttention`.
        rates: of the ranks, by which ``auto`` chooses.
    """

    def __init__(
        self, group: Group, members: Sequence[int], seq_len: int, device: torch.device,
        layout: str = "zigzag", wires: Wires | None = None, method: str = "auto", canonical: bool = True,
        rates: Rates | None = None,
    ) -> None:  # fmt: skip
        self.group, self.members, self.seq_len = group, tuple(members), seq_len
        self.index = self.members.index(group.rank)
        self.layout = LAYOUTS[layout](seq_len, self.size)
        self.method, self.canonical, self.rates = method, canonical, rates or Rates(1e11, 1e11)
        self.wires = wires or star(self.size, 1.0)
        own = [i for run in self.layout[self.index] for i in run]
        self.rows = Rows(seq_len, torch.tensor(own, dtype=torch.int64, device=device))

    @property
    def size(self) -> int:
        return len(self.members)

    def cut(self, whole: Tensor) -> Tensor:
        """[B, S] -> [B, S_i]."""
        return self.rows.take(whole, dim=1)

    def add_up(self, numbers: Tensor) -> Tensor:
        """Everybody's `numbers`, added in the order of cp indices."""
        numbers = numbers.contiguous()
        into = [numbers if i == self.index else torch.empty_like(numbers) for i in range(self.size)]
        peers = [(rank, i) for i, rank in enumerate(self.members) if i != self.index]
        exchange(self.group, [(r, numbers, STATISTICS) for r, _ in peers], [(r, into[i], STATISTICS) for r, i in peers])
        total = into[0].clone()
        for part in into[1:]:
            total += part
        return total


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def cp_ranks(layout: Layout, rank: int) -> tuple[int, ...]:
    """The ranks with which `rank` shares every sequence, in order of cp indices: those of its replica and tp index."""
    stage, _, shard = layout.where(rank)
    first = layout.replica_of(rank)[0] * layout.cp
    return tuple(team[shard] for team in layout.stages[stage].teams[first : first + layout.cp])


def apply_context_parallel(
    model: Decoder, cp: ContextParallel, tp: TensorParallel | None, attend: Callable[[str], Attend]
) -> None:
    """Let a stage, already in its tensor-parallel form, work on this rank's positions.

    Args:
        attend: of a module's name, what takes the place of `causal_attention` in it.
    """
    for name, module in model.named_modules():
        if "attend" in vars(module):
            module.attend = attend(name)
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
