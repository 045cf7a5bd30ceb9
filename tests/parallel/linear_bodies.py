"""Rank bodies for linear attention over cut sequences: each rank's part, compared with the whole computed beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from tests.models.test_linear_attention import DK, B, H, inputs
from trainsys.comm.communicator import Communicator
from trainsys.comm.group import Group
from trainsys.comm.wires import star
from trainsys.config import ModelConfig
from trainsys.models.linear_attention import Inputs, Part, linear_attention
from trainsys.models.registry import build
from trainsys.parallel.sequence.attend import CpAttention
from trainsys.parallel.sequence.context import ContextParallel, apply_context_parallel
from trainsys.parallel.sequence.linear import SCANS
from trainsys.parallel.sequence.linear import mix as mixing
from trainsys.parallel.sequence.linear.all_scan import in_blocks
from trainsys.parallel.sequence.linear.apply import apply_linear
from trainsys.parallel.sequence.linear.convert import convert
from trainsys.parallel.sequence.linear.halo import halo
from trainsys.parallel.sequence.linear.mix import mix
from trainsys.parallel.sequence.linear.scan import Scan
from trainsys.sequence.layouts import Layout


@dataclass(frozen=True)
class Team:
    group: Group
    members: tuple[int, ...]

    @property
    def index(self) -> int:
        return self.members.index(self.group.rank)

    @property
    def size(self) -> int:
        return len(self.members)


def connect(rank: int, world_size: int, store: Any) -> tuple[Communicator, Team]:
    comm, members = Communicator(store, rank, timeout_s=20.0), tuple(range(world_size))
    comm.reconfigure(0, [members])
    return comm, Team(comm.group(members), members[::-1])  # cp indices need not be in the order of ranks


def off(a: Tensor | None, b: Tensor) -> float:
    assert a is not None
    assert a.shape == b.shape
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if a.numel() else 0.0


def scans(
    rank: int, world_size: int, store: Any, cases: Sequence[tuple[str, str, tuple[int, ...], bool]]
) -> list[tuple[float, str]]:
    """Of each (method, kind, lengths by cp index, packed) the largest error of values and gradients, and their bits."""
    comm, team = connect(rank, world_size, store)
    found = []
    for name, kind, lengths, packed in cases:
        method = in_blocks(int(name)) if name.isdecimal() else SCANS[name](star(world_size, 1e-4))
        first, last = list(pairwise([0, *accumulate(lengths)]))[team.index]
        whole = inputs(kind, sum(lengths), packed)
        own = Inputs(*(None if t is None else t[:, first:last].detach().requires_grad_() for t in whole[:5]))  # type: ignore[arg-type]
        own = own._replace(starts=None if whole.starts is None else whole.starts[:, first:last])
        want, got = linear_attention(whole)[0], mix(own, Scan(team, method))
        weight = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(5))
        leaves = [t for t in whole[:5] if t is not None]
        gradients = torch.autograd.grad((want * weight).sum(), leaves)
        mine = torch.autograd.grad((got * weight[:, first:last]).sum(), [t for t in own[:5] if t is not None])
        errors = [off(got, want[:, first:last])]
        errors += [off(a, b[:, first:last]) for a, b in zip(mine, gradients, strict=True)]
        bits = b"".join(t.detach().contiguous().numpy().tobytes() for t in (got, *mine))
        found.append((max(errors), bits.hex()))
    comm.close()
    return found


def positions(seq_len: int) -> Tensor:
    return torch.randn(B, seq_len, H, DK, dtype=torch.float64, generator=torch.Generator().manual_seed(seq_len))


def of(whole: Tensor, ranges: Sequence[range]) -> Tensor:
    return whole[:, [position for r in ranges for position in r]]


def layouts(rank: int, world_size: int, store: Any, pairs: Sequence[tuple[int, Layout, Layout]]) -> list[float]:
    """Largest error of (sequence length, from, to): rows, and gradients, which are added where several have a row."""
    comm, team = connect(rank, world_size, store)
    found = []
    for seq_len, a, b in pairs:
        whole, weight = positions(seq_len), positions(seq_len) ** 2
        x = of(whole, a[team.index]).requires_grad_()
        got = convert(x, team, a, b)
        (got * of(weight, b[team.index]) * (1 + team.index)).sum().backward()
        shares = torch.zeros(seq_len, dtype=torch.float64)
        for index, ranges in enumerate(b):
            for r in ranges:
                shares[list(r)] += 1 + index
        want = of(weight * shares[:, None, None], a[team.index])
        found.append(max(off(got, of(whole, b[team.index])), off(x.grad, want)))
    comm.close()
    return found


def halos(rank: int, world_size: int, store: Any, cases: Sequence[tuple[tuple[int, ...], int]]) -> list[float]:
    """Largest error of (lengths by cp index, width): the positions before, and gradients."""
    comm, team = connect(rank, world_size, store)
    found = []
    for lengths, width in cases:
        layout = tuple((range(a, b),) for a, b in pairwise([0, *accumulate(lengths)]))
        whole = positions(sum(lengths)).requires_grad_()
        padded = torch.nn.functional.pad(whole, (0, 0, 0, 0, width, 0))
        want = [padded[:, own.start : own.start + width] for (own,) in layout]
        sum((w**2).sum() * (1 + i) for i, w in enumerate(want)).backward()  # type: ignore[union-attr]
        (own,) = layout[team.index]
        x = whole[:, own.start : own.stop].detach().requires_grad_()
        got = halo(x, team, layout, width)
        ((got**2).sum() * (1 + team.index)).backward()
        assert whole.grad is not None
        found.append(max(off(got, want[team.index]), off(x.grad, whole.grad[:, own.start : own.stop])))
    comm.close()
    return found


def model(rank: int, world_size: int, store: Any, layout: str, method: str) -> dict[str, float]:
    """Largest errors of one rank's logits, of 13 positions in that layout, and of the gradients added up over ranks."""
    comm, team = connect(rank, world_size, store)
    cp = ContextParallel(team.group, team.members, 13, torch.device("cpu"), layout, method="all_gather")
    errors = {}
    for decay, inside_tp in (("diagonal", False), ("delta", True)):
        config = ModelConfig(
            "linear_llama", 24, dim=16, num_layers=4, num_heads=4, num_kv_heads=2, decay=decay, softmax_every=3,  # type: ignore[arg-type]
        )  # fmt: skip
        torch.manual_seed(3)
        whole, here = build(config, range(-1, 5)).double(), build(config, range(-1, 5)).double()
        here.load_state_dict(whole.state_dict())
        apply_context_parallel(here, cp, None, lambda name: CpAttention(cp, cp.method, canonical=cp.canonical))
        apply_linear(here, cp, cp.seq_len, cp.layout, SCANS[method](cp.wires), inside_tp)
        tokens = torch.randint(24, (B, cp.seq_len), generator=torch.Generator().manual_seed(1))
        want, got = whole(tokens), here(cp.cut(tokens))
        weight = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(2))
        (want * weight).sum().backward()
        (got * cp.cut(weight)).sum().backward()
        errors[f"{decay} logits"] = off(got, cp.cut(want))
        for (name, theirs), ours in zip(whole.named_parameters(), here.parameters(), strict=True):
            assert theirs.grad is not None and ours.grad is not None, name
            team.group.all_reduce(ours.grad)
            errors[f"{decay} {name}"] = off(ours.grad, theirs.grad)
    comm.close()
    return errors


class _Recorded(Scan):
    """A scan of one rank, which notes when it is asked for what."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def start(self, state: Tensor, transition: Tensor, back: bool) -> None:
        self.events.append("start")
        self.result = torch.zeros_like(state)

    def wait(self) -> Tensor:
        self.events.append("wait")
        return self.result


class _Noted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, events: list[str]) -> Tensor:
        ctx.events = events
        events.append("alone")
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.events.append("alone")
        return grad, None


def order_of_events() -> list[str]:
    """What happens in which order in a forward and a backward; "alone" is the reading of a rank's own chunks."""
    events: list[str] = []
    read = Part.read
    try:
        Part.read = lambda self, q: read(self, _Noted.apply(q, events))  # type: ignore[method-assign]
        out = mixing.mix(inputs("delta", 9), _Recorded(events))
        events.append("backward")
        out.sum().backward()
    finally:
        Part.read = read  # type: ignore[method-assign]
    return events
