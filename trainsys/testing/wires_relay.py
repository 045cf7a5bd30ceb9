"""A process that stands for wires: what ranks send goes through it, and passes when wires would have let it.

What a connection brings is cut into short pieces. A piece waits for each edge of its way, takes its time at the edge's
rate, then the edge's latency. Pairs of ranks that meet at an edge take turns. Times of the model follow from each
other, not from the clock: a late wake-up delays a piece, but takes no rate away.

Ranks are brought here by `relayed_store`. A connection begins with eight bytes that say from whom to whom.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from multiprocessing.connection import Connection

from trainsys.comm.wires import Wires

_TICKET = struct.Struct("<IHBB")  # the listener's number for the connection, its port, its rank, the caller's rank
_PIECE_S = 1e-3  # of the slowest edge's time: what a piece takes, within
_PIECE_BYTES = (4 << 10, 64 << 10)
_UNDER_WAY = 8  # pieces, beside what covers the latency: enough for a wake-up that is late by seven of them
_BUFFER = 256 << 10  # bytes that lie before the wires
_COARSE_S = 2e-3  # waits of epoll are rounded up to milliseconds; shorter ones sleep
_NICE = -15  # as ranks in namespaces, where that is allowed
_ERRORS = select.EPOLLERR | select.EPOLLHUP
Handler = Callable[[int], None]


def ticket(caller: int, listener: int, port: int, number: int) -> int:
    """What the initiator of a connection says first, as a number."""
    return int.from_bytes(_TICKET.pack(number, port, listener, caller), "little")


Pair = tuple[int, int]  # from rank, to rank
_Waiting = tuple["_Flow", int, bytes]  # flow, edges passed, piece


@dataclass(eq=False, slots=True)
class _Edge:
    """One direction of a wire: bytes per second, seconds; pieces that wait, the pairs that they are of in turn."""

    rate: float
    latency_s: float
    busy: bool = False
    num_bytes: int = 0
    queues: dict[Pair, deque[_Waiting]] = field(default_factory=dict)
    turns: deque[Pair] = field(default_factory=deque)

    def append(self, pair: Pair, waiting: _Waiting) -> None:
        queue = self.queues.setdefault(pair, deque())
        if not queue:
            self.turns.append(pair)
        queue.append(waiting)

    def popleft(self) -> _Waiting:
        pair = self.turns.popleft()
        queue = self.queues[pair]
        waiting = queue.popleft()
        if queue:
            self.turns.append(pair)
        return waiting


@dataclass(eq=False, slots=True)
class _Flow:
    """One direction of a connection: `ended` when its source has nothing more to say, `done` when its sink knows."""

    source: socket.socket
    sink: socket.socket
    pair: Pair
    way: Sequence[_Edge]
    piece: int
    window: int
    under_way: int = 0
    readable: bool = True
    ended: bool = False
    done: bool = False
    back: _Flow | None = None  # the other direction
    arrived: deque[bytes] = field(default_factory=deque)


class Relay:
    """The wires among ranks of this machine.

    Args:
        wires: what is between them.
        payload: part of each rate that is left for bytes of messages.
        listener: where ranks connect.
        parent: asks for counters with any message; when it closes, `serve` ends.
    """

    def __init__(self, wires: Wires, payload: float, listener: socket.socket, parent: Connection) -> None:
        self._edges = {e: _Edge(link.gbps * 1e9 * payload, link.latency_s) for e, link in wires.links.items()}
        self._routes, self._listener, self._parent = wires.routes, listener, parent
        self._epoll, self._handlers = select.epoll(), dict[int, Handler]()
        self._events: list[tuple[float, int, _Edge | None, _Waiting]] = []  # time, order, edge just passed, what
        self._count = 0
        listener.setblocking(False)
        self._watch(listener.fileno(), lambda _: self._accept())

    def serve(self) -> None:
        """Until the parent goes."""
        self._watch(self._parent.fileno(), lambda _: self._answer(), select.EPOLLIN)
        while not self._parent.closed:
            wait_s = self._pass_on()
            if 0 < wait_s < _COARSE_S:
                time.sleep(min(wait_s, 3e-4))
                wait_s = 0.0
            for fd, events in self._epoll.poll(None if wait_s < 0 else max(0.0, wait_s - 1e-3)):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)

    def _answer(self) -> None:
        try:
            self._parent.recv()
            self._parent.send({edge: state.num_bytes for edge, state in self._edges.items()})
        except (EOFError, OSError):
            self._parent.close()

    def _watch(
        self, fd: int, handler: Handler, events: int = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
    ) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # called and gone
            caller.setblocking(False)
            self._watch(caller.fileno(), partial(self._greet, caller), select.EPOLLIN)

    def _greet(self, caller: socket.socket, events: int) -> None:
        """Read the ticket, go on to the listener, and let bytes pass both ways."""
        try:
            if len(caller.recv(_TICKET.size, socket.MSG_PEEK)) in range(1, _TICKET.size):
                return
            said = caller.recv(_TICKET.size)
            number, port, dst, src = _TICKET.unpack(said)
            ways = self._routes[src, dst], self._routes[dst, src]
            listener = socket.create_connection(("127.0.0.1", port), timeout=5.0)
            listener.sendall(number.to_bytes(8, "little"))
        except BlockingIOError:
            return
        except (OSError, KeyError, struct.error):
            self._forget(caller)
            return
        for end in (caller, listener):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._epoll.unregister(caller.fileno())
        forth = self._flow(caller, listener, (src, dst), ways[0])
        return_ = self._flow(listener, caller, (dst, src), ways[1])
        forth.back, return_.back = return_, forth
        for end, inward, outward in ((caller, forth, return_), (listener, return_, forth)):
            self._watch(end.fileno(), partial(self._serve_end, inward, outward))

    def _flow(self, source: socket.socket, sink: socket.socket, pair: Pair, way: Sequence[tuple[int, int]]) -> _Flow:
        edges = [self._edges[edge] for edge in way]
        slowest, latency_s = min(edge.rate for edge in edges), sum(edge.latency_s for edge in edges)
        piece = int(min(max(slowest * _PIECE_S, _PIECE_BYTES[0]), _PIECE_BYTES[1]))
        covers = 0 if slowest == float("inf") else int(slowest * latency_s)
        return _Flow(source, sink, pair, edges, piece, (_UNDER_WAY + len(edges) - 1) * piece + covers)

    def _serve_end(self, inward: _Flow, outward: _Flow, events: int) -> None:
        """Something happened at one end: of a flow it is the source, of the other the sink."""
        if events & (select.EPOLLIN | _ERRORS):
            inward.readable = True
            self._take_in(inward)
        if events & select.EPOLLOUT:
            self._hand_out(outward)

    def _take_in(self, flow: _Flow) -> None:
        """As much as may be under way."""
        while flow.readable and not flow.ended and flow.under_way < flow.window:
            try:
                piece = flow.source.recv(flow.piece)
            except BlockingIOError:
                flow.readable = False
                return
            except OSError:
                piece = b""
            if not piece:
                flow.ended = True
                self._close_behind(flow)
                return
            flow.under_way += len(piece)
            self._enter(flow, 0, piece, time.monotonic())

    def _enter(self, flow: _Flow, passed: int, piece: bytes, now_s: float) -> None:
        """`piece` comes to the next edge of its way, or to its receiver."""
        if passed == len(flow.way):
            flow.arrived.append(piece)
            self._hand_out(flow)
            return
        edge, waiting = flow.way[passed], (flow, passed, piece)
        edge.num_bytes += len(piece)
        if edge.busy:
            edge.append(flow.pair, waiting)
        else:
            self._begin(edge, waiting, now_s)

    def _begin(self, edge: _Edge, waiting: _Waiting, now_s: float) -> None:
        edge.busy = True
        self._at(now_s + len(waiting[2]) / edge.rate, edge, waiting)

    def _at(self, time_s: float, edge: _Edge | None, waiting: _Waiting) -> None:
        self._count += 1
        heappush(self._events, (time_s, self._count, edge, waiting))

    def _pass_on(self) -> float:
        """Let time pass until now; seconds until something more happens, -1 when nothing will."""
        events = self._events
        while events:
            wait_s = events[0][0] - time.monotonic()
            if wait_s > 0:
                return wait_s
            at_s, _, edge, waiting = heappop(events)
            flow, passed, piece = waiting
            if edge is None:
                self._enter(flow, passed, piece, at_s)
                continue
            edge.busy = False
            if edge.turns:
                self._begin(edge, edge.popleft(), at_s)
            if edge.latency_s:
                self._at(at_s + edge.latency_s, None, (flow, passed + 1, piece))
            else:
                self._enter(flow, passed + 1, piece, at_s)
        return -1.0

    def _hand_out(self, flow: _Flow) -> None:
        """What has arrived, as far as its receiver takes it."""
        while flow.arrived:
            piece = flow.arrived.popleft()
            try:
                done = flow.sink.send(piece)
            except BlockingIOError:
                done = 0
            except OSError:
                done, flow.ended = len(piece), True
            flow.under_way -= done
            if done < len(piece):
                flow.arrived.appendleft(piece[done:])
                return
            self._take_in(flow)
        self._close_behind(flow)

    def _close_behind(self, flow: _Flow) -> None:
        """Pass on the end of a flow after its last byte; close both ends when it was the second of their two."""
        if not flow.ended or flow.under_way or flow.done:
            return
        flow.done = True
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # gone
        if flow.back is not None and flow.back.done:
            self._forget(flow.source)
            self._forget(flow.sink)

    def _forget(self, end: socket.socket) -> None:
        del self._handlers[end.fileno()]
        end.close()  # epoll lets go of it by itself


def open_listener() -> socket.socket:
    """A port whose number ends with a zero byte and lies below those that are given out.

    Gloo lets the end with the greater address call, and compares ports byte-swapped: a rank always calls this one.
    """
    for high in range(0x08, 0x80):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        try:
            listener.bind(("127.0.0.1", high << 8))
            listener.listen(1024)
        except OSError:
            listener.close()
            continue
        return listener
    raise RuntimeError("no emulated wires: every port that would do is taken")


def serve(wires: Wires, payload: float, parent: Connection) -> None:
    """Body of the process: tell the parent the port, then relay until it goes."""
    try:
        os.nice(_NICE)
    except OSError:
        pass  # pieces may be later
    listener = open_listener()
    parent.send(listener.getsockname()[1])
    Relay(wires, payload, listener, parent).serve()
