"""How long a plan of attention takes: its messages on the wires and its kernels' calls, played as they will run.

The legs and calls priced are those that run. A member is a wire of its own that carries seconds of computation, in
order; messages share the real wires (`comm/fluid.py`). Both halves are priced apart, for in training the backward
decides. Plain arithmetic: no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainsys.comm.fluid import Message, play
from trainsys.comm.routed import Leg, Routed
from trainsys.comm.topology import Link
from trainsys.comm.wires import Edge
from trainsys.sequence.layouts import Positions
from trainsys.sequence.mask import Mask, calls
from trainsys.sequence.place import Place, Plan
from trainsys.sequence.shares import key_heads, query_heads, repeated

_CAUSAL = 0.6  # of a full square's time: half the pairs, and what a kernel does on tiles that the diagonal cuts
_BACKWARD = 2.5  # products of a backward over those of a forward: five to two (Dao et al. 2022, arXiv:2205.14135)


@dataclass(frozen=True)
class Rates:
    """What the ranks and their messages cost.

    Attributes:
        flops: of the kernel's products per second, forward; multiplications and additions count as one each.
        backward_flops: of its backward.
        call_s: what each call of a kernel and the merge of its result take beside the products.
        alpha_s: of a message.
        cores: if all ranks compute on one machine with so many; 0: each has its own device.
    """

    flops: float
    backward_flops: float
    call_s: float = 2e-5
    alpha_s: float = 1.5e-4
    cores: float = 0.0


@dataclass(frozen=True)
class Shape:
    """What a call of attention is on each rank.

    Attributes:
        batch: sequences.
        element: bytes of an element of queries and keys.
        kept: bytes of an element of what is summed up.
    """

    batch: int = 1
    element: int = 2
    kept: int = 4


@dataclass(frozen=True)
class Price:
    """Of both halves: seconds, the bytes that all ranks send, those on each wire, and what none can be faster than: its
    fullest wire, or its computation."""

    forward_s: float
    backward_s: float
    forward_bytes: float
    backward_bytes: float
    forward_edges: Mapping[Edge, float]
    backward_edges: Mapping[Edge, float]
    forward_bound_s: float
    backward_bound_s: float

    @property
    def seconds(self) -> float:
        return self.forward_s + self.backward_s

    @property
    def bound_s(self) -> float:
        return self.forward_bound_s + self.backward_bound_s

    @property
    def edges(self) -> dict[Edge, float]:
        """Bytes on each wire, of both halves."""
        return {edge: there + self.backward_edges[edge] for edge, there in self.forward_edges.items()}


def price(plan: Plan, place: Place, shape: Shape, rates: Rates) -> Price:
    """Of `plan`, made for `place`, by this and every other member."""
    forward = _Half(plan, place, shape, rates, backward=False)
    backward = _Half(plan, place, shape, rates, backward=True)
    return Price(
        forward.seconds, backward.seconds, forward.num_bytes, backward.num_bytes, forward.edges, backward.edges,
        forward.bound_s, backward.bound_s,
    )  # fmt: skip


class _Half:
    def __init__(self, plan: Plan, place: Place, shape: Shape, rates: Rates, backward: bool) -> None:
        self.plan, self.place, self.shape, self.rates, self.backward = plan, place, shape, rates, backward
        self.journey = plan.backward if backward else plan.forward
        self.messages: list[Message] = []
        self.routes: list[tuple[Edge, ...]] = []
        self.num_bytes = 0.0
        self.pairs: dict[object, int] = {}
        self.links: dict[Edge, Link] = dict(place.wires.links)
        self.edges = dict.fromkeys(place.wires.links, 0.0)
        self.busy = [0.0] * place.size  # seconds of computation of each member
        self.heads, self.kv_heads = 0, 0
        self.seconds = self._exchanges() + self._travel()

    @property
    def bound_s(self) -> float:
        """What the fullest wire takes, or the computation."""
        wires = max((n / (self.links[edge].gbps * 1e9) for edge, n in self.edges.items()), default=0.0)
        shared = sum(self.busy) / self.rates.cores if self.rates.cores else 0.0
        return max(wires, shared, *self.busy)

    def _pair(self, key: object, route: tuple[Edge, ...]) -> int:
        if key not in self.pairs:
            self.pairs[key] = len(self.routes)
            self.routes.append(route)
        return self.pairs[key]

    def _count(self, src: int, dst: int, num_bytes: float) -> tuple[Edge, ...]:
        route = self.place.wires.routes[src, dst]
        self.num_bytes += num_bytes
        for edge in route:
            self.edges[edge] += num_bytes
        return route

    def _message(self, key: object, src: int, dst: int, num_bytes: float, after: tuple[int, ...]) -> int:
        pair = self._pair((key, src, dst), self._count(src, dst, num_bytes))
        self.messages.append(Message(pair, num_bytes, after))
        return len(self.messages) - 1

    def _compute(self, member: int, seconds: float, after: tuple[int, ...]) -> int:
        """A member computes in order; on shared cores at most so many at once."""
        own, cores = (-1, member), (-2, 0)
        self.links[own] = Link(1e-9, 0.0)
        route: tuple[Edge, ...] = (own,)
        if self.rates.cores:
            self.links[cores] = Link(1e-9 * self.rates.cores, 0.0)
            route = (own, cores)
        self.busy[member] += seconds
        pair = self._pair(("compute", member), route)
        self.messages.append(Message(pair, max(seconds - self.rates.alpha_s, 0.0), after))
        return len(self.messages) - 1

    def _travel(self) -> float:
        """All groups of members that make the journey travel at once."""
        u, place = self.plan.shared, self.place
        for group in range(u):
            self.heads, self.kv_heads = place.heads, place.kv_heads
            if u > 1:
                first, last = query_heads(place.heads, u, group)
                self.heads = last - first
                self.kv_heads = repeated(place.heads, place.kv_heads, u, group)
            if self.heads:
                self._group(list(range(group, place.size, u)))
        return max(play(self.messages, self.routes, self.links, self.rates.alpha_s), default=0.0)

    def _group(self, members: list[int]) -> None:
        journey = self.journey
        arrived: dict[tuple[int, int], int] = {}  # (member, chunk): the message that brought it
        out = self._width_out()
        for leg in _by_step(journey.there):
            before = arrived.get((leg.src, leg.chunk))
            after = () if before is None else (before,)
            size = out * self._positions(leg)
            arrived[leg.dst, leg.chunk] = self._message(0, members[leg.src], members[leg.dst], size, after)
        done = {
            key: task for me in range(len(members)) for key, task in self._tasks(me, members[me], arrived).items()
        }  # fmt: skip
        if not self.backward and not journey.queries:
            return
        summed: dict[tuple[int, int], list[int]] = {}
        home = self._width_home()
        for leg in _by_step(journey.back):
            here = (leg.src, leg.chunk)
            after = (*summed.get(here, ()), *((done[here],) if here in done else ()))
            size = home * self._positions(leg)
            sent = self._message(1, members[leg.src], members[leg.dst], size, after)
            summed.setdefault((leg.dst, leg.chunk), []).append(sent)

    def _tasks(self, me: int, member: int, arrived: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
        """Computations of one member in order; of (member, chunk), the one that has dealt with it."""
        journey, done = self.journey, dict[tuple[int, int], int]()
        slices = journey.out.slices
        own = [(me * slices + part) for part in range(slices)]
        steps = [[leg.chunk for leg in legs] for legs in journey.there.arrivals[me] if legs]
        if self.plan.at_once:
            steps = [[chunk for step in steps for chunk in step]]
        for chunks in [own, *steps]:
            after = tuple(arrived[me, chunk] for chunk in chunks if (me, chunk) in arrived)
            task = self._compute(member, self._calls_s(me, tuple(chunks)), after)
            done.update({(me, chunk): task for chunk in chunks})
        return done

    def _calls_s(self, me: int, chunks: tuple[int, ...]) -> float:
        """Seconds of the kernel's calls of `me` for these chunks."""
        journey, mask = self.journey, self.journey.mask
        mine = journey.layout[me]
        if chunks and all(journey.out.source(chunk) == me for chunk in chunks):
            theirs: Positions = mine
        else:
            theirs = tuple(run for chunk in chunks for run in journey.chunks[chunk])
        rows, keys = (theirs, mine) if journey.queries else (mine, theirs)
        pairs, count = _work(rows, keys, mask)
        place, rates = self.place, self.rates
        flops = 2.0 * self.shape.batch * self.heads * pairs * (place.head_dim + place.value_dim)
        rate = rates.backward_flops / _BACKWARD if self.backward else rates.flops
        return flops / rate + count * rates.call_s

    def _positions(self, leg: Leg) -> int:
        return sum(len(run) for run in self.journey.chunks[leg.chunk][leg.first : leg.last])

    def _width_out(self) -> float:
        """Bytes of what travels, per position."""
        place, shape = self.place, self.shape
        if not self.journey.queries:
            return shape.batch * self.kv_heads * (place.head_dim + place.value_dim) * shape.element
        if not self.backward:
            return shape.batch * self.heads * place.head_dim * shape.element
        widths = (place.head_dim + place.value_dim) * shape.element + 2 * shape.kept
        return shape.batch * self.heads * widths

    def _width_home(self) -> float:
        """Bytes of what goes home, per position."""
        place, shape = self.place, self.shape
        wire = shape.kept if self.plan.exact_wire else shape.element
        if not self.journey.queries:
            return shape.batch * self.kv_heads * (place.head_dim + place.value_dim) * wire
        if not self.backward:
            return shape.batch * self.heads * (place.value_dim + 1) * shape.kept
        return shape.batch * self.heads * place.head_dim * wire

    def _exchanges(self) -> float:
        """Seconds of heads for positions and back; nothing goes on beside them."""
        u, place = self.plan.shared, self.place
        if u == 1:
            return 0.0
        lengths = [sum(map(len, own)) for own in place.layout]
        queries = [last - first for first, last in (query_heads(place.heads, u, m) for m in range(u))]
        keys = [last - first for first, last in (key_heads(place.heads, place.kv_heads, u, m) for m in range(u))]
        together = [queries[m] * place.head_dim + keys[m] * (place.head_dim + place.value_dim) for m in range(u)]
        apart = [queries[m] * place.value_dim for m in range(u)]
        forth = ((together, apart), (apart, together))[self.backward]
        return self._exchange(forth[0], lengths, True) + self._exchange(forth[1], lengths, False)

    def _exchange(self, widths: list[int], lengths: list[int], to_heads: bool) -> float:
        """Elements of `widths` per position go to the member that has the heads, or from it."""
        routes, messages = list[tuple[Edge, ...]](), list[Message]()
        u, element = self.plan.shared, self.shape.batch * self.shape.element
        for first in range(0, self.place.size, u):
            for a in range(first, first + u):
                for b in range(first, first + u):
                    size = element * (lengths[a] * widths[b - first] if to_heads else lengths[b] * widths[a - first])
                    if a != b and size:
                        messages.append(Message(len(routes), size))
                        routes.append(self._count(a, b, size))
        return max(play(messages, routes, self.place.wires.links, self.rates.alpha_s), default=0.0)


def _by_step(routed: Routed) -> list[Leg]:
    return sorted(routed.legs, key=lambda leg: leg.step)


def _work(rows: Positions, keys: Positions, mask: Mask) -> tuple[float, int]:
    """Pairs that the kernel works on, causal squares at what they take, and the number of calls."""
    found = calls(rows, keys, mask)
    pairs = 0.0
    for call in found:
        width = sum(b - a for _, a, b in call.keys)
        pairs += (call.last - call.first) * width * (_CAUSAL if call.kind == "causal" else 1.0)
    return pairs, len(found)
