"""Discrete-event simulation of a schedule: what the step will take, per lane, in time and activations."""

from __future__ import annotations

from array import array
from itertools import accumulate

from trainsys.schedule.actions import COMPUTE, VOCABULARY, Kind
from trainsys.schedule.costs import Costs
from trainsys.schedule.explain import refused, waiting
from trainsys.schedule.gates import gates_of
from trainsys.schedule.numbered import CODE, EDGE, LOCAL, number
from trainsys.schedule.outcome import Event, Simulation
from trainsys.schedule.schedule import Schedule, ScheduleError

__all__ = ["Event", "Simulation", "simulate"]

_F, _B, _I = (CODE[kind] for kind in (Kind.F, Kind.B, Kind.I))
_SEND_F, _RECV_F, _SEND_B = CODE[Kind.SEND_F], CODE[Kind.RECV_F], CODE[Kind.SEND_B]
_OFFLOAD, _RELOAD = CODE[Kind.OFFLOAD], CODE[Kind.RELOAD]
_COMPUTE = max(CODE[kind] for kind in COMPUTE - VOCABULARY)  # the last of them: they come first
_FOLLOWS = [{Kind.F: 0, Kind.W: 2}.get(kind, 1) for kind in CODE]  # 0: nothing, 1: F, 2: the input gradient
_KEEPS = [{Kind.F: 1, Kind.B: -1, Kind.W: -1}.get(kind, 0) for kind in CODE]  # activations


def simulate(schedule: Schedule, costs: Costs) -> Simulation:
    """Run `schedule` (with its comms) against `costs`.

    Compute starts when its lane is free and its inputs have arrived. SEND and RECV do not block their lane; a
    transfer starts when both have been called, as with gloo and NCCL, and transfers of one direction between two lanes
    queue behind each other. So do a lane's copies to the host, and those back, without blocking it; what a RELOAD
    brings back is waited for by the first of R, B and I behind it. What one lane sends to all, or all to one, for E, S,
    T and G leaves, or arrives, in turn. Time and space are linear in the number of actions.

    Raises:
        ScheduleError: if an action is not on its lane or comes before what it needs there, or if lanes wait for each
            other, naming them and the action that each waits at.
        ValueError: if the costs do not have one number per stage.
    """
    return _Run(schedule, costs).finish()


class _Run:
    """The worklist: a lane advances until a message is missing, and goes on when it arrives.

    A *message* is twice the work that receives it, and 1 more for a gradient.
    """

    def __init__(self, schedule: Schedule, costs: Costs) -> None:
        self.schedule, self.costs = schedule, costs
        numbered, table = number(schedule), costs.table(schedule.routes.num_stages)
        self.ways, self.lanes = numbered.ways, numbered.lanes
        self.seconds = [table.get(kind, ()) for kind in CODE]
        self.slow = [[[factor * s for s in row] for row in self.seconds] for factor in costs.slow or ()]  # by lane
        self.scale = costs.scale
        lanes = range(schedule.num_lanes)
        self.at = [0 for _ in lanes]  # next action
        self.now = [0.0 for _ in lanes]
        self.busy = [0.0 for _ in lanes]
        self.first = [0, *accumulate(len(lane) for lane in schedule.lanes)]  # of a lane's actions among all
        self.starts, self.ends = (array("d", bytes(8 * self.first[-1])) for _ in range(2))
        sides = zip(self.ways.source, self.ways.target, strict=True)
        self.arrived = [0.0 if side == EDGE else -1.0 for pair in sides for side in pair]  # -1: not yet
        self.called: dict[int, tuple[float, int, int]] = {}  # the first of a message's SEND and RECV
        self.link_s: dict[tuple[int, int], float] = {}
        self.link_free: dict[tuple[int, int], float] = {}
        self.copy_free: dict[tuple[int, int], float] = {}  # (lane, kind of copy)
        self.away: dict[int, float] = {}  # when a work has been copied to the host
        self.back: dict[int, float] = {}  # when it has been copied back
        self.done = bytearray(len(self.ways.lane_of))  # as in _FOLLOWS
        self.waiting: dict[int, int] = {}  # message -> lane
        self.runnable = list(reversed(lanes))
        self.gates = gates_of(schedule, self.ways)
        self.several = LOCAL in self.ways.source or self.gates is not None
        if self.gates is not None:
            self.arrived += [-1.0] * (self.gates.count - len(self.arrived))
            self.missing = dict(self.gates.missing)
            self.coming: dict[int, list[tuple[float, float]]] = {}  # message -> ends of what it needs, and the way here
            for message in self.missing:
                self.arrived[message] = -1.0

    def finish(self) -> Simulation:
        while self.runnable:
            self.advance(self.runnable.pop())
        if self.waiting:
            actions = {lane: self.schedule.lanes[lane][self.at[lane]] for lane in self.waiting.values()}
            raise ScheduleError(waiting(self.schedule, actions))
        return Simulation(
            step_s=max(*self.now, max(self.ends, default=0.0)),
            busy_s=tuple(self.busy),
            peak_activations=tuple(
                max(accumulate(map(_KEEPS.__getitem__, kinds)), default=0) for kinds, _ in self.lanes
            ),
            lanes=self.schedule.lanes,
            starts=self.starts,
            ends=self.ends,
        )

    def advance(self, lane: int) -> None:
        """Run a lane's actions until one lacks its message."""
        kinds, works = self.lanes[lane]
        arrived, done, action_s = self.arrived, self.done, self.costs.action_s
        seconds = self.slow[lane] if self.slow else self.seconds
        count, first = self.schedule.routes.num_microbatches, self.first[lane]
        now, busy = self.now[lane], self.busy[lane]
        for place in range(self.at[lane], len(kinds)):
            kind, work = kinds[place], works[place]
            start = now + action_s
            if kind > _COMPUTE:
                if kind > _RELOAD:
                    end = self.run_pass(lane, place, start)
                    if end < 0:
                        self.at[lane], self.now[lane], self.busy[lane] = place, now, busy
                        return
                    now, busy = end, busy + end - self.starts[first + place]
                    continue
                now = start
                (self.copy if kind >= _OFFLOAD else self.call)(lane, place, now)
                continue
            if done[work] != _FOLLOWS[kind]:
                raise ScheduleError(refused(self.schedule, lane, place))
            if kind <= _I:
                message = 2 * work + (kind != _F)
                at = arrived[message]
                if at < 0:
                    if self.is_local(message):
                        raise ScheduleError(refused(self.schedule, lane, place))
                    self.waiting[message] = lane
                    self.at[lane], self.now[lane], self.busy[lane] = place, now, busy
                    return
                if at > start:
                    start = at
                done[work] += 1
            if self.back and kind != _F:
                start = max(start, self.back.pop(work, 0.0))
            spent = seconds[kind][work // count]
            if self.scale is not None:
                spent *= self.scale[work % count]
            now = start + spent
            busy += spent
            self.starts[first + place], self.ends[first + place] = start, now
            if self.several:
                self.hand_over(kind, work, now)
        self.at[lane], self.now[lane], self.busy[lane] = len(kinds), now, busy

    def is_local(self, message: int) -> bool:
        """Whether a message is to come from an earlier action of its own lane."""
        return (self.ways.target if message % 2 else self.ways.source)[message // 2] == LOCAL

    def hand_over(self, kind: int, work: int, now: float) -> None:
        """What needs no transfer, because the neighbour on the path is on the same lane."""
        if kind == _F and self.ways.target[work] == LOCAL:
            self.arrived[2 * self.ways.after[work]] = now
        elif kind in (_B, _I) and self.ways.source[work] == LOCAL:
            self.arrived[2 * self.ways.before[work] + 1] = now
        if self.gates is not None:
            self.feed(kind, work, now)

    def run_pass(self, lane: int, place: int, start: float) -> float:
        """E, S, T or G from `start` on, or when what it waits for is there; its end, or -1 while it is not."""
        kinds, works = self.lanes[lane]
        kind, work, gates = kinds[place], works[place], self.gates
        if gates is None or work not in gates.firsts:
            raise ScheduleError(refused(self.schedule, lane, place))
        message = gates.needs(kind, work)
        at = 0.0 if message < 0 else self.arrived[message]
        if at < 0:
            self.waiting[message] = lane
            return -1.0
        stage, mb = divmod(work, self.schedule.routes.num_microbatches)
        start = max(start, at)
        seconds = self.slow[lane] if self.slow else self.seconds
        end = start + seconds[kind][stage] * (1.0 if self.scale is None else self.scale[mb])
        index = self.first[lane] + place
        self.starts[index], self.ends[index] = start, end
        self.feed(kind, work, end)
        return end

    def feed(self, kind: int, work: int, now: float) -> None:
        """Count the end of an action for what waits for it; what one lane sends to others leaves in turn."""
        gates = self.gates
        assert gates is not None
        here, sent = self.ways.lane_of[work], now
        for message in gates.feeds(kind, work):
            lane = gates.receiver(message)
            hop = self.costs.hop_s(here, lane)
            fan = gates.missing[message] == 1
            sent += hop if fan else 0.0
            coming = self.coming.setdefault(message, [])
            coming.append((sent, 0.0) if fan and hop else (now, hop))
            self.missing[message] -= 1
            if not self.missing[message]:
                self.arrived[message] = _all_here(self.coming.pop(message), gates.shared(message))
                if message in self.waiting:
                    self.runnable.append(self.waiting.pop(message))

    def call(self, lane: int, place: int, now: float) -> None:
        """A SEND or RECV; the second of the pair starts the transfer."""
        kinds, works = self.lanes[lane]
        kind, work = kinds[place], works[place]
        if kind == _SEND_F:
            message = 2 * self.ways.after[work]
        elif kind == _SEND_B:
            message = 2 * self.ways.before[work] + 1
        else:
            message = 2 * work + (kind != _RECV_F)
        if message < 0:
            raise ScheduleError(refused(self.schedule, lane, place))
        partner = self.called.pop(message, None)
        index = self.first[lane] + place
        if partner is None:
            self.called[message] = (now, lane, index)
            return
        earlier, other, sent = partner
        link = (other, lane)
        if kind in (_SEND_F, _SEND_B):
            link, sent = (lane, other), index
        if link not in self.link_s:
            self.link_s[link], self.link_free[link] = self.costs.hop_s(*link), 0.0
        start = max(now, earlier, self.link_free[link])
        end = start + self.link_s[link]
        self.starts[sent], self.ends[sent] = start, end
        self.arrived[message] = self.link_free[link] = end
        if message in self.waiting:
            self.runnable.append(self.waiting.pop(message))

    def copy(self, lane: int, place: int, now: float) -> None:
        """An OFFLOAD or RELOAD: copies of one direction queue, and what comes back has left before."""
        kinds, works = self.lanes[lane]
        kind, work = kinds[place], works[place]
        start = max(now, self.copy_free.get((lane, kind), 0.0), self.away.get(work, 0.0))
        end = start + self.seconds[kind][work // self.schedule.routes.num_microbatches]
        self.copy_free[lane, kind] = end
        (self.away if kind == _OFFLOAD else self.back)[work] = end
        index = self.first[lane] + place
        self.starts[index], self.ends[index] = start, end


def _all_here(ends: list[tuple[float, float]], in_turn: bool) -> float:
    """When all has arrived that left at `ends` and is so long on its way; `in_turn`: one after the other."""
    now = 0.0
    for end, hop in sorted(ends):
        now = max(now, end) + hop if in_turn else max(now, end + hop)
    return now
