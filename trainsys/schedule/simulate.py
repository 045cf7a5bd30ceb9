"""Discrete-event simulation of a schedule: what the step will take, per lane, in time and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from trainsys.schedule.actions import COUNTERPART, Action, Kind
from trainsys.schedule.costs import Costs
from trainsys.schedule.schedule import Schedule, ScheduleError

_IS_SEND = frozenset({Kind.SEND_F, Kind.SEND_B})
_FREES = frozenset({Kind.B, Kind.W})

# A value that a stage needs for a microbatch: RECV_F its input, RECV_B its output's gradient, F and I its own results.
_Value = tuple[int, Kind, int]


class Event(NamedTuple):
    """One interval of one lane, in seconds from the start of the step; a SEND's lasts until its arrival."""

    lane: int
    action: Action
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Simulation:
    """The outcome.

    Attributes:
        step_s: from 0 to the end of the last lane's last action.
        events: compute and SEND intervals, by start.
        busy_s: seconds of compute, per lane.
        peak_activations: most (stage, microbatch) activations alive at once, per lane: F allocates, B or W frees.
    """

    step_s: float
    events: tuple[Event, ...]
    busy_s: tuple[float, ...]
    peak_activations: tuple[int, ...]

    @property
    def bubble(self) -> float:
        """Share of the lanes' time without compute: 1 - sum(busy) / (lanes · step)."""
        return 1 - sum(self.busy_s) / (len(self.busy_s) * self.step_s) if self.step_s else 0.0

    def activations(self, lane: int) -> list[tuple[float, int]]:
        """The lane's memory over time: (seconds, activations alive from then on)."""
        curve, alive = [(0.0, 0)], 0
        for event in self.events:
            if event.lane == lane and event.action.kind is Kind.F:
                alive += 1
                curve.append((event.start_s, alive))
            elif event.lane == lane and event.action.kind in _FREES:
                alive -= 1
                curve.append((event.end_s, alive))
        return curve


def simulate(schedule: Schedule, costs: Costs) -> Simulation:
    """Run `schedule` (with its comms) against `costs`.

    Compute starts when its lane is free and its inputs have arrived. SEND and RECV do not block their lane; a
    transfer starts when both have been called, as with gloo and NCCL, and transfers of one direction between two lanes
    queue behind each other. Time and space are linear in the number of actions.

    Raises:
        ScheduleError: if lanes wait for each other, naming them and the action that each waits at.
        ValueError: if the costs do not have one number per stage.
    """
    return _Run(schedule, costs).finish()


class _Run:
    """The worklist: a lane advances until an input is missing, and goes on when it arrives."""

    def __init__(self, schedule: Schedule, costs: Costs) -> None:
        self.schedule = schedule
        self.costs = costs
        self.seconds = costs.table(schedule.routes.num_stages)
        lanes = range(schedule.num_lanes)
        self.at = [0 for _ in lanes]  # next action
        self.now = [0.0 for _ in lanes]
        self.busy = [0.0 for _ in lanes]
        self.alive = [0 for _ in lanes]
        self.peak = [0 for _ in lanes]
        self.events: list[Event] = []
        self.ready: dict[_Value, float] = {}  # when a value can be used by the stage that needs it
        self.called: dict[_Value, tuple[float, int, Action]] = {}  # the first of a transfer's SEND and RECV
        self.link_free: dict[tuple[int, int], float] = {}
        self.waiting: dict[_Value, int] = {}
        self.runnable = list(reversed(lanes))
        self.stages = schedule.routes.num_stages
        self.several = len(schedule.placement) > schedule.num_lanes  # some lane hosts several stages

    def finish(self) -> Simulation:
        while self.runnable:
            self.advance(self.runnable.pop())
        if any(at < len(lane) for at, lane in zip(self.at, self.schedule.lanes, strict=True)):
            raise ScheduleError(self.blocked())
        self.events.sort(key=lambda event: (event.start_s, event.lane))
        step_s = max(max(self.now), max((event.end_s for event in self.events), default=0.0))
        return Simulation(step_s, tuple(self.events), tuple(self.busy), tuple(self.peak))

    def advance(self, lane: int) -> None:
        actions = self.schedule.lanes[lane]
        while self.at[lane] < len(actions):
            action = actions[self.at[lane]]
            if action.is_compute:
                missing = self.compute(lane, action)
                if missing is not None:
                    self.waiting[missing] = lane
                    return
            else:
                self.now[lane] += self.costs.action_s
                self.call(lane, action)
            self.at[lane] += 1

    def compute(self, lane: int, action: Action) -> _Value | None:
        """Run `action` if its inputs are there; otherwise return one that is missing."""
        start = self.now[lane] + self.costs.action_s
        for value in _inputs(action, self.stages):
            if value not in self.ready:
                return value
            start = max(start, self.ready[value])
        seconds = self.seconds[action.kind][action.stage]
        self.now[lane] = end = start + seconds
        self.busy[lane] += seconds
        self.events.append(Event(lane, action, start, end))
        if action.kind is Kind.F:
            self.alive[lane] += 1
            self.peak[lane] = max(self.peak[lane], self.alive[lane])
        elif action.kind in _FREES:
            self.alive[lane] -= 1
        self.yields(lane, action, end)
        return None

    def yields(self, lane: int, action: Action, end: float) -> None:
        """Values of `action` that need no transfer: for this stage, and for a neighbour on the same lane."""
        stage, kind, mb = action.stage, action.kind, action.microbatch
        self.ready[stage, kind, mb] = end
        if not self.several or kind is Kind.W:
            return
        step, value = (1, Kind.RECV_F) if kind is Kind.F else (-1, Kind.RECV_B)
        if 0 <= stage + step < self.stages and self.schedule.lane_of(stage + step, mb) == lane:
            self.ready[stage + step, value, mb] = end

    def call(self, lane: int, action: Action) -> None:
        """A SEND or RECV; the second of the pair starts the transfer."""
        now, sends = self.now[lane], action.kind in _IS_SEND
        kind, step = COUNTERPART[action.kind] if sends else (action.kind, 0)
        value = (action.stage + step, kind, action.microbatch)
        first = self.called.pop(value, None)
        if first is None:
            self.called[value] = (now, lane, action)
            return
        earlier, other, partner = first
        link = (lane, other) if sends else (other, lane)
        start = max(now, earlier, self.link_free.get(link, 0.0))
        send_s = self.costs.send_s
        end = start + (send_s(*link) if callable(send_s) else send_s)
        self.ready[value] = self.link_free[link] = end
        self.events.append(Event(link[0], action if sends else partner, start, end))
        if value in self.waiting:
            self.runnable.append(self.waiting.pop(value))

    def blocked(self) -> str:
        """The cycle of lanes that wait for each other, or the lane that waits for something nobody will send."""
        waits = {lane: value for value, lane in self.waiting.items()}
        lane, path = min(waits), list[int]()
        while lane in waits and lane not in path:
            path.append(lane)
            lane = self.owner(waits[lane])
        cycle = path[path.index(lane) :] if lane in path else path
        text = []
        for at in cycle:
            _, kind, mb = waits[at]
            value = f"{kind.value.removeprefix('RECV_')} of microbatch {mb}"
            text.append(
                f"lane {at} waits at {self.schedule.lanes[at][self.at[at]]} for {value} from lane "
                f"{self.owner(waits[at])}"
            )
        end = "cyclic wait" if lane in path else f"lane {lane} has ended"
        return f"{end}: {'; '.join(text)}"

    def owner(self, value: _Value) -> int:
        """The lane that produces `value`."""
        stage, kind, mb = value
        return self.schedule.lane_of(stage + {Kind.RECV_F: -1, Kind.RECV_B: 1}.get(kind, 0), mb)


def _inputs(action: Action, num_stages: int) -> list[_Value]:
    stage, mb = action.stage, action.microbatch
    if action.kind is Kind.F:
        return [(stage, Kind.RECV_F, mb)] if stage > 0 else []
    if action.kind is Kind.W:
        return [(stage, Kind.I, mb)]
    own = (stage, Kind.F, mb)
    return [own, (stage, Kind.RECV_B, mb)] if stage < num_stages - 1 else [own]
