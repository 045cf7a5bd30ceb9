"""Expert parallelism: the replicas of a stage share out each layer's experts and send each other their tokens.

Lepikhin et al. 2020 (GShard, arXiv:2006.16668), §3.3. The teams of one *ep group* each hold one class of the experts;
every team computes attention and router for its own microbatch. An expert answers each team's tokens in a product of
their own, as that team would have done itself: the bits do not depend on the degree, and the gradient of a weight
exists per microbatch, so that it enters the summation tree at the leaf of the microbatch that it came from. Tokens
travel inside forward and backward, so the teams of a group run them in lockstep (schedule/lockstep.py).

    rows = (token, choice) pairs; member c of the group holds class c; tp rank t talks to tp rank t of the other teams
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.comm.tags import EXPERTS
from trainsys.models.decoder import Decoder
from trainsys.models.moe import Experts
from trainsys.parallel.tensor import apply
from trainsys.space.layout import Layout

_COUNTS, _ROWS = EXPERTS, EXPERTS + 1


class ExpertParallel:
    """The ep group of this rank, and where the gradients of the other members' microbatches wait.

    Args:
        group: contains every member.
        members: ranks in order of the class that they hold.
        classes: numbers of the first expert of each class, and of all experts at the end.
    """

    def __init__(self, group: Group, members: Sequence[int], classes: Sequence[int]) -> None:
        assert len(classes) == len(members) + 1, (members, classes)
        self.group, self.members, self.classes = group, tuple(members), tuple(classes)
        self.own = self.members.index(group.rank)
        self.twins: dict[int, dict[str, nn.Parameter]] = {i: {} for i in range(len(members)) if i != self.own}

    def swap(self, rows: Tensor, leaving: Sequence[int], arriving: Sequence[int]) -> Tensor:
        """All-to-all: consecutive rows to each member, theirs in the same order.

        Args:
            rows: [sum(leaving), dim].
            leaving, arriving: rows to and from each member, this rank included.

        Returns:
            [sum(arriving), dim].
        """
        out = rows.new_empty((sum(arriving), *rows.shape[1:]))
        self._exchange(list(rows.contiguous().split(list(leaving))), list(out.split(list(arriving))), _ROWS)
        return out

    def swap_counts(self, counts: Sequence[int], device: torch.device) -> list[list[int]]:
        """Rows of each expert -> for each member, the rows of each of this rank's experts that it will send."""
        parts = torch.tensor(counts, device=device).split([b - a for a, b in pairwise(self.classes)])
        mine = [torch.empty_like(parts[self.own]) for _ in self.members]
        self._exchange(list(parts), mine, _COUNTS)
        return [part.tolist() for part in mine]

    def _exchange(self, parts: list[Tensor], into: list[Tensor], tag: int) -> None:
        into[self.own].copy_(parts[self.own])
        peers = [(rank, i) for i, rank in enumerate(self.members) if i != self.own]
        exchange(
            self.group,
            [(rank, parts[i], tag) for rank, i in peers if parts[i].numel()],
            [(rank, into[i], tag) for rank, i in peers if into[i].numel()],
        )

    def begin(self) -> None:
        """Start a step; gradients that an abandoned one left are dropped."""
        for twins in self.twins.values():
            for twin in twins.values():
                twin.grad = None

    def gradients(self, names: Iterable[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(member, gradient per parameter name) of what this rank computed for the others in its last backward.

        Args:
            names: of the parameters that it went through.
        """
        names = list(names)
        for member, twins in self.twins.items():
            grads: dict[str, Tensor] = {}
            for name in names:
                if name in twins:
                    twin = twins[name]
                    assert twin.grad is not None, f"a backward did not reach {name}"
                    grads[name], twin.grad = twin.grad, None
            yield member, grads


class _Swap(torch.autograd.Function):
    """Rows to their experts, or answers back; the gradients travel the other way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ep: ExpertParallel, leaving: list[int], arriving: list[int]) -> Tensor:
        ctx.swapped = ep, leaving, arriving
        return ep.swap(rows, leaving, arriving)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        ep, leaving, arriving = ctx.swapped
        return ep.swap(grad, arriving, leaving), None, None, None


class Dispatch:
    """What takes the place of `Experts.forward` where some experts live elsewhere.

    Each other member has *twins* of the experts here: modules of their own on the same weights, whose gradients stay
    apart from this rank's.

    Args:
        experts: those of this rank's class alone.
        name: qualified name of `experts` in the model.
    """

    def __init__(self, experts: Experts, name: str, ep: ExpertParallel) -> None:
        self.ep, self.by_member = ep, dict[int, Experts]()
        for member in range(len(ep.members)):
            # deepcopy takes the aliases for the copies of the parameters
            aliases: dict[int, Any] = {id(p): nn.Parameter(p.detach()) for p in experts.parameters()}
            self.by_member[member] = experts if member == ep.own else copy.deepcopy(experts, aliases)
            if member != ep.own:
                twins = self.by_member[member].named_parameters(prefix=name)
                ep.twins[member].update(twins)

    def __call__(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """As `Experts.forward`: rows of all experts' tokens -> their answers, wherever they come from."""
        ep = self.ep
        ends = [0, *accumulate(counts)]
        leaving = [ends[b] - ends[a] for a, b in pairwise(ep.classes)]
        theirs = ep.swap_counts(counts, rows.device)
        arriving = [sum(part) for part in theirs]
        parts = apply(_Swap, rows, ep, leaving, arriving).split(arriving)
        # Experts.forward, and not the module itself, whose forward this is
        answers = [Experts.forward(self.by_member[i], part, theirs[i]) for i, part in enumerate(parts)]
        return apply(_Swap, torch.cat(answers), ep, arriving, leaving)


def ep_ranks(layout: Layout, rank: int) -> tuple[int, ...]:
    """The ranks with which `rank` shares out its stage's experts, in order of classes. Raises ValueError if uneven."""
    s, team, shard = layout.where(rank)
    stage = layout.stages[s]
    return tuple(stage.teams[i][shard] for i in stage.ep_group(team))


def keep_class(model: Decoder, ep: ExpertParallel) -> None:
    """Leave this rank's experts of every layer."""
    own = range(ep.classes[ep.own], ep.classes[ep.own + 1])
    for module in model.modules():
        if isinstance(module, Experts):
            for number in list(module):
                if int(number) not in own:
                    del module[number]


def apply_expert_parallel(model: Decoder, ep: ExpertParallel) -> None:
    """Let every layer's experts answer for the whole group; `keep_class` came first, and the weights have storage."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Experts):
            module.forward = Dispatch(module, name, ep)  # type: ignore[method-assign]
