"""How long a plan of attention takes: its messages on the wires and its kernels' calls, played as they will run.

The legs and calls priced are those that run. A member is a wire of its own that carries seconds of computation, in
order; messages share the real wires (`comm/fluid.py`). Both halves are priced apart, for in training the backward
decides. Plain arithmetic: no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from trainsys.comm.datapath_time import CROWD
from trainsys.comm.fluid import Message, play
from trainsys.comm.routed import Leg, Routed
from trainsys.comm.topology import Link
from trainsys.comm.wires import Edge
from trainsys.sequence.layouts import Positions, num_positions
from trainsys.sequence.mask import Mask, calls
from trainsys.sequence.place import Place, Plan
from trainsys.sequence.shares import key_heads, query_heads, repeated

_TILE = 128  # keys that a kernel takes at once on an accelerator
_CPU_TILE = 512  # and on a CPU (torch's flash attention)
_COPIES = 3.0  # of what is exchanged for heads: into a message, out of it, into the kernel's order
_PASS_ON_S = 5e-4  # fitted: four ranks on two cores
_HANDLED = 2.0  # fitted: what a message takes of the cores of its two ranks, in times of alpha_s
# what a pair carries: what travels, results, heads, seconds of work
_OUT, _HOME, _IN, _BACK, _WORK, _COURIER = range(6)
_AHEAD = 1  # fitted: steps that a courier is ahead; it may be `flow.AHEAD`
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
        copied: bytes per second of what is packed, put in another order or added up (fitted on CPU cores).
    """

    flops: float
    backward_flops: float
    call_s: float = 2e-5
    alpha_s: float = 1.5e-4
    cores: float = 0.0
    copied: float = 2e9


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
        self.connections: list[int] = []
        self.num_bytes = 0.0
        self.pairs: dict[tuple[int, int, int], int] = {}
        self.links: dict[Edge, Link] = dict(place.wires.links)
        self.edges = dict.fromkeys(place.wires.links, 0.0)
        self.busy = [0.0] * place.size  # seconds of computation of each member
        self.heads, self.kv_heads = 0, 0
        self.handled_s = _HANDLED * (1 + backward) * rates.alpha_s if rates.cores else 0.0
        self.tile = _CPU_TILE if rates.cores else _TILE
        self.sockets: dict[Edge, int] = {}  # what goes from one to another shares one, whatever it is
        self.begins = [tuple[int, ...]()] * place.size  # of each member, what must have come before it can begin,
        self.ends = [tuple[int, ...]()] * place.size  # and what must have been done until it has ended
        self._plan()
        self.seconds = max(
            play(self.messages, self.routes, self.links, rates.alpha_s, CROWD, self.connections), default=0.0
        )

    @property
    def bound_s(self) -> float:
        """What the fullest wire takes, or the computation."""
        wires = max((n / (self.links[edge].gbps * 1e9) for edge, n in self.edges.items()), default=0.0)
        shared = sum(self.busy) / self.rates.cores if self.rates.cores else 0.0
        return max(wires, shared, *self.busy)

    def _pair(self, flow: int, src: int, dst: int, route: tuple[Edge, ...]) -> int:
        if (flow, src, dst) not in self.pairs:
            self.pairs[flow, src, dst] = len(self.routes)
            socket = (src, dst) if src != dst else (-1 - flow, src)
            self.connections.append(self.sockets.setdefault(socket, len(self.routes)))
            self.routes.append(route)
        return self.pairs[flow, src, dst]

    def _count(self, src: int, dst: int, num_bytes: float) -> tuple[Edge, ...]:
        route = self.place.wires.routes[src, dst]
        self.num_bytes += num_bytes
        for edge in route:
            self.edges[edge] += num_bytes
        return route

    def _message(self, flow: int, src: int, dst: int, num_bytes: float, after: tuple[int, ...]) -> int:
        pair = self._pair(flow, src, dst, self._count(src, dst, num_bytes))
        self.messages.append(Message(pair, num_bytes, after))
        return len(self.messages) - 1

    def _compute(self, member: int, seconds: float, after: tuple[int, ...]) -> int:
        """A member computes in order; on shared cores at most so many at once."""
        own, cores = (-1, member), (-3, 0)
        self.links[own] = Link(1e-9, 0.0)
        route: tuple[Edge, ...] = (own,)
        if self.rates.cores:
            self.links[cores] = Link(1e-9 * self.rates.cores / CROWD, 0.0)  # no wire, which would lose by being shared
            route = (own, cores)
        self.busy[member] += seconds
        pair = self._pair(_WORK, member, member, route)
        self.messages.append(Message(pair, max(seconds - self.rates.alpha_s, 0.0), after))
        return len(self.messages) - 1

    def _passed_on(self, member: int, after: tuple[int, ...]) -> tuple[int, ...]:
        """On shared cores the courier of a member waits for one before it can pass on what has come."""
        if not self.rates.cores:
            return after
        self.links[-2, member] = Link(1e-9, 0.0)
        pair = self._pair(_COURIER, member, member, ((-2, member),))
        self.messages.append(Message(pair, max(_PASS_ON_S - self.rates.alpha_s, 0.0), after))
        return (len(self.messages) - 1,)

    def _plan(self) -> None:
        """All groups of members that make the journey travel at once, with heads exchanged before and after."""
        u, place = self.plan.shared, self.place
        queries = [last - first for first, last in (query_heads(place.heads, u, m) for m in range(u))]
        keys = [last - first for first, last in (key_heads(place.heads, place.kv_heads, u, m) for m in range(u))]
        together = [
            q * place.head_dim + k * (place.head_dim + place.value_dim) for q, k in zip(queries, keys, strict=True)
        ]
        apart = [q * place.value_dim for q in queries]
        if u > 1:
            self.begins = self._exchange(_IN, apart if self.backward else together, self.begins)
        for group in range(u):
            self.heads = queries[group]
            self.kv_heads = repeated(place.heads, place.kv_heads, u, group)
            if self.heads:
                self._group(list(range(group, place.size, u)))
        if u > 1:
            self._exchange(_BACK, together if self.backward else apart, self.ends)

    def _group(self, members: list[int]) -> None:
        journey = self.journey
        arrived: dict[tuple[int, int], int] = {}  # (member, chunk): the message that brought it
        out = self._width_out()
        packed = [
            self._compute(members[me], out * num_positions(positions) / self.rates.copied, self.begins[members[me]])
            for me, positions in enumerate(journey.layout)
        ]
        courier = _Courier(len(members))
        for leg in _by_step(journey.there):
            after: tuple[int, ...] = (arrived.get((leg.src, leg.chunk), packed[leg.src]),)
            if journey.there.relays:
                after += courier.before(leg)
            if (leg.src, leg.chunk) in arrived:
                after = self._passed_on(members[leg.src], after)
            size = out * self._positions(leg)
            sent = self._message(_OUT, members[leg.src], members[leg.dst], size, after)
            arrived[leg.dst, leg.chunk] = courier.took(leg, sent)
        done: dict[tuple[int, int], int] = {}
        for me, member in enumerate(members):
            tasks = self._tasks(me, member, arrived)
            self.ends[member] = (max(tasks.values()),)  # they are done in order
            done |= tasks
        if not self.backward and not journey.queries:
            return
        summed: dict[tuple[int, int], list[int]] = {}
        home, courier = self._width_home(), _Courier(len(members))
        for leg in _by_step(journey.back):
            here = (leg.src, leg.chunk)
            after = (*courier.before(leg), *((done[here],) if here in done else ()))
            if here in summed:
                after = self._passed_on(members[leg.src], (*after, *summed[here]))
            size = home * self._positions(leg)
            sent = self._message(_HOME, members[leg.src], members[leg.dst], size, after)
            summed.setdefault((leg.dst, leg.chunk), []).append(courier.took(leg, sent))
        for (me, chunk), come in summed.items():
            if journey.out.source(chunk) == me:
                self.ends[members[me]] += tuple(come)

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
            handled = self.handled_s * len(chunks) if chunks is not own else 0.0
            task = self._compute(member, handled + self._calls_s(me, tuple(chunks)), after)
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
        work = _Work.of(rows, keys, mask, self.tile)
        place, rates = self.place, self.rates
        size = place.head_dim + place.value_dim
        flops = 2.0 * self.shape.batch * self.heads * work.pairs * size
        rate = rates.backward_flops / _BACKWARD if self.backward else rates.flops
        merged = self.heads * work.rows * place.value_dim
        if self.backward:
            merged = (
                self.heads * work.rows * place.head_dim + self.kv_heads * (work.keys + num_positions(theirs)) * size
            )
        return flops / rate + work.calls * rates.call_s + self.shape.batch * self.shape.kept * merged / rates.copied

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

    def _exchange(self, flow: int, widths: list[int], after: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Elements of `widths` per position go to the neighbours that have the heads (`_IN`), or back from them.

        Returns:
            what comes to each member.
        """
        u, place, element = self.plan.shared, self.place, self.shape.batch * self.shape.element
        lengths = [num_positions(own) for own in place.layout]
        come = [list[int]() for _ in lengths]
        for a in range(place.size):
            near = range(a // u * u, a // u * u + u)
            sizes = [
                element * (lengths[a] * widths[b % u] if flow == _IN else lengths[b] * widths[a % u]) for b in near
            ]
            copied = self._compute(a, _COPIES * sum(sizes) / self.rates.copied, after[a])
            for b, size in zip(near, sizes, strict=True):
                if a == b:
                    come[b].append(copied)
                elif size:
                    come[b].append(self._message(flow, a, b, size, (copied,)))
        return [tuple(ids) for ids in come]


def _by_step(routed: Routed) -> list[Leg]:
    return sorted(routed.legs, key=lambda leg: leg.step)


class _Courier:
    """Who passes things on goes step by step (`comm/flow.py`, `comm/flow_back.py`): a member sends in a step when all
    that comes to it in the steps before has arrived, but for the last `_AHEAD` of these."""

    def __init__(self, size: int) -> None:
        self._arrivals: list[list[tuple[int, int]]] = [[] for _ in range(size)]  # (step, message)

    def before(self, leg: Leg) -> tuple[int, ...]:
        """What `leg`, whose member comes to it, waits for."""
        return tuple(message for step, message in self._arrivals[leg.src] if step < leg.step - _AHEAD)

    def took(self, leg: Leg, message: int) -> int:
        self._arrivals[leg.dst].append((leg.step, message))
        return message


class _Work(NamedTuple):
    """What calls of the kernel amount to: pairs of rows and keys that it works on, and how many of each are merged."""

    pairs: float
    rows: int
    keys: int
    calls: int

    @classmethod
    def of(cls, rows: Positions, keys: Positions, mask: Mask, tile: int) -> _Work:
        found = calls(rows, keys, mask)
        pairs, all_rows, all_keys = 0.0, 0, 0
        for call in found:
            height, width = call.last - call.first, sum(b - a for _, a, b in call.keys)
            pairs += _triangle(width, tile) if call.kind == "causal" else height * width
            all_rows, all_keys = all_rows + height, all_keys + width
        return cls(pairs, all_rows, all_keys, len(found))


def _triangle(side: int, tile: int) -> float:
    """Pairs that a kernel works on of a causal square: whole tiles of keys, but for those later than all rows."""
    last = max(-(-side // tile) - 1, 0)
    return tile * tile * last * (last + 1) / 2 + (side - last * tile) * side
