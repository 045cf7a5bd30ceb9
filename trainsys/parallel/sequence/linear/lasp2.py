"""LASP-2 (Sun et al. 2025, arXiv:2502.07563): everybody's own state goes to all, and each chains those before it.

One exchange of P - 1 states and transitions. `lasp2` is the collective all-gather; `lasp2_direct` sends to later ranks
only, who alone need it: no less time where a rank has one port, a P-th of it where each pair has a link.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainsys.comm.exchange import exchange
from trainsys.models.linear_attention import carry
from trainsys.parallel.sequence.linear.scan import Line


def lasp2(line: Line, state: Tensor, transition: Tensor) -> Tensor:
    """By the backend's all-gather where the group is the line, else by messages."""
    own, group = _packed(state, transition), line.group
    everyone = [torch.empty_like(own) for _ in line.ranks]
    if set(group.ranks) == set(line.ranks):
        of = dict(zip(group.ranks, everyone, strict=True))
        group.wait(group.start().allgather([everyone], [own]))
        everyone = [of[rank] for rank in line.ranks]
    else:
        peers = [(rank, i) for i, rank in enumerate(line.ranks) if i != line.place]
        exchange(group, [(r, own, line.tag) for r, _ in peers], [(r, everyone[i], line.tag) for r, i in peers])
    return _chain(everyone[: line.place], state, transition)


def lasp2_direct(line: Line, state: Tensor, transition: Tensor) -> Tensor:
    own = _packed(state, transition)
    earlier = [torch.empty_like(own) for _ in line.earlier]
    exchange(
        line.group,
        [(rank, own, line.tag) for rank in line.later],
        [(rank, into, line.tag) for rank, into in zip(line.earlier, earlier, strict=True)],
    )
    return _chain(earlier, state, transition)


def _packed(state: Tensor, transition: Tensor) -> Tensor:
    return torch.cat((state.flatten(), transition.flatten()))


def _chain(earlier: list[Tensor], state: Tensor, transition: Tensor) -> Tensor:
    """What these ranks, in their order, make of nothing; `state` and `transition` lend their shapes."""
    before = torch.zeros_like(state)
    for packed in earlier:
        theirs, kept = packed.split([state.numel(), transition.numel()])
        before = carry(kept.view(transition.shape), before) + theirs.view(state.shape)
    return before
