"""Attention among the cp teams by a chosen method: plans made once for each shape, then run.

B = microbatch, S_i = positions of this member, D, E = head sizes of keys and of values
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from trainsys.parallel.sequence.agree import BAD, agree, told
from trainsys.parallel.sequence.attention import attention
from trainsys.parallel.sequence.context import ContextParallel
from trainsys.parallel.sequence.heads import Sharing, exchanged, returned
from trainsys.parallel.sequence.trip import Trip
from trainsys.sequence.layouts import Positions, num_positions
from trainsys.sequence.mask import Mask
from trainsys.sequence.methods import METHODS
from trainsys.sequence.place import Place, Plan, in_canonical_order
from trainsys.sequence.price import Shape
from trainsys.sequence.select import choices


class CpAttention:
    """What takes the place of `causal_attention` where a sequence is cut.

    Args:
        method: a name of `METHODS`, or ``auto``: what the first member expects to be fastest, forward and backward.
        mask: of all calls.
        canonical: the same bits by every method.
    """

    def __init__(self, cp: ContextParallel, method: str, mask: Mask | None = None, canonical: bool = True) -> None:
        self.cp, self.method, self.mask, self.canonical = cp, method, mask or Mask(), canonical
        self._known: dict[tuple[object, ...], tuple[Sharing | None, Trip, Trip]] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, S_i, heads, D], [B, S_i, kv_heads, D], [B, S_i, kv_heads, E] -> [B, S_i, heads · E].

        Raises:
            ValueError: the members' tensors do not fit together, or the method cannot serve them; nothing is sent then.
            CommError: naming the step and the rank that was waited for.
        """
        sharing, there, back = self.prepare(q, k, v)
        if sharing is None:
            return attention(q, k, v, there, back).flatten(2)
        out = attention(*exchanged(q, k, v, sharing), there, back)
        return returned(out, sharing, q.shape[2]).flatten(2)

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Sharing | None, Trip, Trip]:
        """What the first call with such tensors would plan; all members call it. Raises ValueError as a call does."""
        shape = (*q.shape, *k.shape[1:], *v.shape[1:], q.dtype)
        if shape not in self._known:
            alike = (q.shape[0], q.shape[2], *k.shape[2:], v.shape[3], q.dtype)  # on all members, unlike lengths
            problem = self._problem(q, k, v)
            if problem and self._known:  # the others go on by what is known already
                raise ValueError(problem.removeprefix(BAD))
            said = f"{self.method} {self.canonical} {self.mask} {self.cp.layout} {alike}"
            agree(self.cp, problem or said)
            self._known[shape] = self._planned(q, k, v)
        return self._known[shape]

    def _problem(self, q: Tensor, k: Tensor, v: Tensor) -> str:
        """What is wrong with this member's tensors, all of whose peers are told; nothing if they fit."""
        here = num_positions(self.cp.layout[self.cp.index])
        if {q.shape[1], k.shape[1], v.shape[1]} != {here}:
            return (
                f"{BAD}rank {self.cp.group.rank} has {here} of {self.cp.seq_len} positions (batch.seq_len), but got "
                f"queries, keys and values of {q.shape[1]}, {k.shape[1]} and {v.shape[1]}"
            )
        if q.shape[2] % k.shape[2] or k.shape[2] != v.shape[2] or q.shape[3] != k.shape[3]:
            return (
                f"{BAD}queries of {q.shape[2]} heads of {q.shape[3]}, keys of {k.shape[2]} of {k.shape[3]} and values "
                f"of {v.shape[2]} do not fit: model.num_heads must be a multiple of model.num_kv_heads"
            )
        return ""

    def _planned(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Sharing | None, Trip, Trip]:
        cp = self.cp
        place = Place(cp.layout, self.mask, cp.wires, q.shape[2], k.shape[2], q.shape[3], v.shape[3])
        plan = METHODS[self._method(place, q)](place)
        origins: tuple[Positions, ...] = ()
        if self.canonical:
            plan = in_canonical_order(plan, place)
            origins = cp.layout if plan.shared > 1 else ()
        members = cp.members[cp.index % plan.shared :: plan.shared]
        wire = None if plan.exact_wire else q.dtype
        there = Trip(cp.group, members, plan.forward, q.shape[3] ** -0.5, wire, plan.at_once, self.canonical, origins)
        return self._sharing(plan), there, replace(there, journey=plan.backward)

    def _method(self, place: Place, q: Tensor) -> str:
        if self.method != "auto":
            return self.method
        shape = Shape(q.shape[0], q.element_size(), max(4, q.element_size()))
        found = choices(place, shape, self.cp.rates, self.canonical) if self.cp.index == 0 else []
        return told(self.cp, found[0].method if found else "")

    def _sharing(self, plan: Plan) -> Sharing | None:
        if plan.shared == 1:
            return None
        first = self.cp.index // plan.shared * plan.shared
        near = slice(first, first + plan.shared)
        return Sharing(self.cp.group, self.cp.members[near], self.cp.layout[near], sorted=not self.canonical)
