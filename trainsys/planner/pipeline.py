"""One step's schedule, simulated with given costs: when each stage ends, how busy it is, what it keeps alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from trainsys.schedule import Costs, Routes, Schedule, build, simulate

Hops = Mapping[tuple[int, int], float]  # (source lane, destination lane) -> seconds of a message


@dataclass(frozen=True)
class Pipeline:
    """The outcome, per stage the worst of its lanes.

    Attributes:
        ends_s: end of the last compute action.
        busy_s: seconds of computing.
        in_flight: most microbatches of a run whose activations are alive at once.
        bubble: share of all lanes' time without computing.
    """

    ends_s: tuple[float, ...]
    busy_s: tuple[float, ...]
    in_flight: tuple[int, ...]
    bubble: float

    @property
    def step_s(self) -> float:
        return max(self.ends_s)


@lru_cache(maxsize=256)
def schedule_for(name: str, microbatches: int, replicas: tuple[int, ...], vp: int) -> Schedule:
    """The named schedule with balanced routes. Raises ValueError for more replicas than microbatches."""
    return build(name, Routes.balanced(microbatches, replicas, vp), vp)


def run_pipeline(
    name: str,
    microbatches: int,
    replicas: tuple[int, ...],
    f_s: tuple[float, ...],
    b_s: tuple[float, ...],
    hops: Hops | None = None,
) -> Pipeline:
    """Simulate schedule `name` with F and B seconds per run of layers and seconds per message.

    With one replica per stage a long step is periodic once the pipeline is full: beyond three microbatches per stage
    the outcome grows by the same amount each time, and is continued from two short simulations (within 0.5 % of the
    whole one while a message takes less time than a forward). Under vp the period is one microbatch per stage.
    """
    num_stages = len(replicas)
    frozen = tuple(sorted((hops or {}).items()))
    if set(replicas) != {1} or microbatches <= (4 if len(f_s) > num_stages else 3) * num_stages + 8:
        return _simulated(name, microbatches, replicas, f_s, b_s, frozen)
    start = 4 + (microbatches - 4) % num_stages if len(f_s) > num_stages else 4
    short, long = 2 * num_stages + start, 3 * num_stages + start
    a = _simulated(name, short, replicas, f_s, b_s, frozen)
    b = _simulated(name, long, replicas, f_s, b_s, frozen)
    more = (microbatches - long) / (long - short)

    def extend(x: tuple[float, ...], y: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(j + (j - i) * more for i, j in zip(x, y, strict=True))

    ends, busy = extend(a.ends_s, b.ends_s), extend(a.busy_s, b.busy_s)
    in_flight = tuple(round(n) for n in extend(a.in_flight, b.in_flight))
    return Pipeline(ends, busy, in_flight, bubble=1 - sum(busy) / (num_stages * max(ends)))


@lru_cache(maxsize=4096)
def most_in_flight(name: str, microbatches: int, replicas: tuple[int, ...], vp: int) -> tuple[int, ...]:
    """Most activations of a run alive on a lane of each stage: the order of actions decides it, not their duration."""
    ones = (1.0,) * len(replicas) * vp
    return run_pipeline(name, microbatches, replicas, ones, ones).in_flight


@lru_cache(maxsize=4096)
def _simulated(
    name: str,
    microbatches: int,
    replicas: tuple[int, ...],
    f_s: tuple[float, ...],
    b_s: tuple[float, ...],
    hops: tuple[tuple[tuple[int, int], float], ...],
) -> Pipeline:
    schedule = schedule_for(name, microbatches, replicas, len(f_s) // len(replicas))
    seconds = dict(hops)
    run = simulate(schedule, Costs(f_s, b_s, send_s=(lambda src, dst: seconds[src, dst]) if hops else 0.0))
    lane_ends = [0.0] * schedule.num_lanes
    for event in run.events:
        if event.action.is_compute:
            lane_ends[event.lane] = max(lane_ends[event.lane], event.end_s)
    ends, busy, alive = ([0.0] * len(replicas) for _ in range(3))
    for (number, _), lane in schedule.placement.items():
        stage = number % len(replicas)
        ends[stage] = max(ends[stage], lane_ends[lane])
        busy[stage] = max(busy[stage], run.busy_s[lane])
        alive[stage] = max(alive[stage], run.peak_activations[lane])
    bubble = 1 - sum(run.busy_s) / (schedule.num_lanes * max(ends))
    return Pipeline(tuple(ends), tuple(busy), tuple(map(int, alive)), bubble)
