"""All-Scan (ZeCO, arXiv:2507.01004, §3): the state goes along the line in blocks, each handed on as it comes.

Every rank receives one state and sends one, which is the least; transitions stay where they are. Blocks of a state that
fades by shares are rows of all heads, and all views. Where the transition is a matrix its columns are independent, and
a block is some of the columns of every head.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from trainsys.comm.scan_time import chain
from trainsys.comm.wires import Wires
from trainsys.models.linear_attention import carry
from trainsys.parallel.sequence.linear.scan import Line, Method


def all_scan(line: Line, state: Tensor, transition: Tensor, blocks: int) -> Tensor:
    """A `Method` in that many blocks, or as many as there are rows or columns."""
    parts, group = _Blocks(state, transition, blocks), line.group
    if not line.earlier:
        if line.later:
            group.wait_all([group.isend(own, line.later[0], line.tag + i) for i, own in enumerate(parts.own)])
        return torch.zeros_like(state)
    into, leaving = [torch.empty_like(own) for own in parts.own], []
    works = [group.irecv(block, line.earlier[-1], line.tag + i) for i, block in enumerate(into)]

    def hand_on(i: int) -> None:
        if line.later:
            out = carry(parts.transitions[i], into[i]) + parts.own[i]
            leaving.append(group.isend(out, line.later[0], line.tag + i))

    group.wait_all(works, hand_on)
    group.wait_all(leaving)
    return parts.join(into)


class _Blocks:
    """A state in contiguous blocks that do not depend on each other, and the transition of each."""

    def __init__(self, state: Tensor, transition: Tensor, count: int) -> None:
        self.shape, self.matrix = state.shape, transition.shape[-1] > 1
        if self.matrix:
            self.own = [block.contiguous() for block in state.tensor_split(min(count, state.shape[-1]), dim=-1)]
            self.transitions = [transition] * len(self.own)
        else:
            rows, shares = state.contiguous().flatten(0, 2), transition.expand(*state.shape[:3], 1).flatten(0, 2)
            count = min(count, len(rows))
            self.own, self.transitions = list(rows.tensor_split(count)), list(shares.tensor_split(count))

    def join(self, blocks: list[Tensor]) -> Tensor:
        return torch.cat(blocks, dim=-1) if self.matrix else torch.cat(blocks).view(self.shape)


def in_blocks(blocks: int) -> Method:
    """All-Scan with a given number of blocks."""
    return partial(all_scan, blocks=blocks)


def for_wires(wires: Wires) -> Method:
    """All-Scan with as many blocks as suit the wires among the ranks (`scan_time.chain`)."""

    def method(line: Line, state: Tensor, transition: Tensor) -> Tensor:
        return all_scan(line, state, transition, chain(wires, state.nbytes, most_blocks(state, transition)).blocks)

    return method


def most_blocks(state: Tensor, transition: Tensor) -> int:
    """Into how many blocks a state can be cut."""
    return state.shape[-1] if transition.shape[-1] > 1 else state[..., 0].numel()
