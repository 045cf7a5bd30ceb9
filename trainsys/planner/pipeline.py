"""One step's schedule, run with given costs: when each stage ends, how busy it is, what it keeps alive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from trainsys.planner.in_flight import FORMS
from trainsys.planner.lane_order import lane_order, lane_times
from trainsys.planner.ragged import per_stage, ragged_order, ragged_times
from trainsys.planner.wide import is_wide, most_alive, sample
from trainsys.schedule import Costs, Routes, Schedule, build, lies_in_v, simulate
from trainsys.schedule.generators.one_f_one_b import in_flight_limit
from trainsys.space.runs import host_of

Hops = Mapping[tuple[int, int], float]  # (source lane, destination lane) -> seconds of a message
_WHOLE = 2048  # forwards up to which a step is not continued from a shorter one


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


@lru_cache(maxsize=32)
def schedule_for(name: str, microbatches: int, replicas: tuple[int, ...], vp: int) -> Schedule:
    """The named schedule with balanced routes. Raises ValueError for more replicas than microbatches."""
    return build(name, Routes.balanced(microbatches, replicas, vp, lies_in_v(name)), vp)


def run_pipeline(
    name: str,
    microbatches: int,
    replicas: tuple[int, ...],
    f_s: tuple[float, ...],
    b_s: tuple[float, ...],
    hops: Hops | None = None,
    w_s: tuple[float, ...] = (),
) -> Pipeline:
    """Run schedule `name` with F and B seconds per run of layers and seconds per message; `w_s` of B are W's (by
    default a half).

    With one replica per stage a long step is periodic once the pipeline is full, and is continued from steps of four
    and of six microbatches per stage, but never below `least_ends`: within 0.3 % of the whole step as a rule (1f1b;
    2.3 % was the most of 250 random pipelines, interleaved ones of very unequal runs). Unequal replicas in numbers that
    `wide` tells of are run in part only; their `hops` are between stages, not lanes.
    """
    if _in_closed_form(name, microbatches, replicas, len(f_s)):
        return _wide(name, microbatches, replicas, f_s, b_s, hops)
    if _by_order(name, replicas, len(f_s)):
        return _ragged(name, microbatches, replicas, f_s, b_s, hops)
    if set(replicas) != {1} or name not in FORMS:
        return _simulated(name, microbatches, replicas, f_s, b_s, tuple(sorted((hops or {}).items())), w_s)
    stages = len(replicas)
    busy = [microbatches * sum(f_s[stage::stages] + b_s[stage::stages]) for stage in range(stages)]
    ends = _ends(name, microbatches, stages, f_s, b_s, hops)
    in_flight = most_in_flight(name, microbatches, replicas, len(f_s) // stages)
    return Pipeline(tuple(ends), tuple(busy), in_flight, bubble=1 - sum(busy) / (stages * max(ends)))


def _by_order(name: str, replicas: tuple[int, ...], runs: int) -> bool:
    """Whether the order of a ragged pipeline's actions is enough to time it: `ragged`."""
    return set(replicas) != {1} and name in FORMS and (runs == len(replicas) or len(replicas) > 2)


def _in_closed_form(name: str, microbatches: int, replicas: tuple[int, ...], runs: int) -> bool:
    return set(replicas) != {1} and name in FORMS and is_wide(microbatches, replicas, runs)


def _wide(
    name: str, microbatches: int, replicas: tuple[int, ...], f_s: tuple[float, ...], b_s: tuple[float, ...],
    hops: Hops | None,
) -> Pipeline:  # fmt: skip
    few = sample(microbatches, replicas, len(f_s))
    least = _wide_ends(name, few, replicas, f_s, b_s, None)
    beyond = max(1.0, _ragged(name, few, replicas, f_s, b_s, None).step_s / max(least))
    ends = tuple(beyond * end for end in _wide_ends(name, microbatches, replicas, f_s, b_s, hops))
    alive, stages = most_alive(name, microbatches, replicas, len(f_s) // len(replicas)), len(replicas)
    busy = tuple(-(-microbatches // n) * sum(f_s[s::stages] + b_s[s::stages]) for s, n in enumerate(replicas))
    return Pipeline(ends, busy, alive, bubble=1 - microbatches * sum(f_s + b_s) / (sum(replicas) * max(ends)))


def _wide_ends(
    name: str, microbatches: int, replicas: tuple[int, ...], f_s: tuple[float, ...], b_s: tuple[float, ...],
    hops: Hops | None,
) -> list[float]:  # fmt: skip
    """When each stage ends at least, with stages' own hops and as many activations as the schedule allows."""
    most = [-(-microbatches // n) for n in replicas]
    alive = most_alive(name, microbatches, replicas, len(f_s) // len(replicas))
    return _least_ends(most, alive, f_s, b_s, *hop_lists(hops, len(replicas)))


def _ragged(
    name: str, microbatches: int, replicas: tuple[int, ...], f_s: tuple[float, ...], b_s: tuple[float, ...],
    hops: Hops | None,
) -> Pipeline:  # fmt: skip
    order = ragged_order(name, microbatches, replicas, len(f_s) // len(replicas))
    ends, busy = ragged_times(order, microbatches, f_s, b_s, hops)
    worst, used = per_stage(replicas, ends), per_stage(replicas, busy)
    in_flight = tuple(per_stage(replicas, order.alive))
    return Pipeline(tuple(worst), tuple(used), in_flight, bubble=1 - sum(busy) / (len(busy) * max(worst)))


def _ends(
    name: str, microbatches: int, stages: int, f_s: tuple[float, ...], b_s: tuple[float, ...], hops: Hops | None
) -> list[float]:
    """When each stage ends, of one replica each."""
    if stages == 1:
        return [microbatches * sum(f_s + b_s)]
    by_events = stages == 2 < len(f_s) and bool(hops)  # both directions share a link, in an order that events decide

    def ends(count: int) -> Sequence[float]:
        if by_events:
            assert hops
            return _simulated(name, count, (1, 1), f_s, b_s, tuple(sorted(hops.items()))).ends_s
        ahead, back = hop_lists(hops, stages)
        return lane_times(lane_order(name, count, stages, len(f_s) // stages), count, stages, f_s, b_s, ahead, back)

    short, long = 4 * stages, 6 * stages  # whole groups of an interleaved schedule
    if microbatches <= long or (microbatches * len(f_s) <= _WHOLE and not by_events):
        return list(ends(microbatches))
    more = (microbatches - long) / (long - short)
    extended = (y + (y - x) * more for x, y in zip(ends(short), ends(long), strict=True))
    least = least_ends(name, microbatches, stages, f_s, b_s, *hop_lists(hops, stages))
    return [max(pair) for pair in zip(extended, least, strict=True)]


def hop_lists(hops: Hops | None, stages: int) -> tuple[list[float], list[float]]:
    """Seconds of a message from each stage to the next (of the last: to the first), and to the one before."""
    if not hops:
        return [0.0] * stages, [0.0] * stages
    return tuple([hops.get((s, (s + way) % stages), 0.0) for s in range(stages)] for way in (1, -1))  # type: ignore[return-value]


def least_ends(
    name: str,
    microbatches: int,
    stages: int,
    f_s: Sequence[float],
    b_s: Sequence[float],
    ahead_s: Sequence[float],
    back_s: Sequence[float],
) -> list[float]:
    """No stage of `name` can end sooner, with one replica each: a bound that needs no simulation.

    A stage j works through all its microbatches after the first has come through the runs before; then the last
    gradient goes on to the stages before it. Its first backward also waits for a microbatch to go to the end and back,
    beside which it can run as many forwards as it may keep activations. And as it keeps so many at most, and each
    stays for a way to the end and back, all of them together take the sum of their stays over that number (Little
    1961). All three hold for any order of F and B; of a schedule that `in_flight` does not know, nothing is said.
    """
    vp = len(f_s) // stages
    alive = FORMS[name](microbatches, stages, vp) if name in FORMS else ()
    return _least_ends((microbatches,) * stages, alive, f_s, b_s, ahead_s, back_s)


def least_ragged_ends(
    name: str, microbatches: int, replicas: tuple[int, ...], f_s: Sequence[float], b_s: Sequence[float], hop_s: float
) -> list[float]:
    """The same of stages with `replicas`, each by the replica with most to do; `hop_s`: no message is faster."""
    most = [-(-microbatches // count) for count in replicas]
    vp, stages = len(f_s) // len(replicas), range(len(replicas))
    alive = [n * vp for n in most] if name in FORMS else []
    if name == "1f1b":
        alive = [min(n, in_flight_limit(replicas, s)) for s, n in zip(stages, most, strict=True)]
    hops = [hop_s] * len(replicas)
    return _least_ends(most, alive, f_s, b_s, hops, hops)


def _least_ends(
    microbatches: Sequence[int], alive: Sequence[int], f_s: Sequence[float], b_s: Sequence[float],
    ahead_s: Sequence[float], back_s: Sequence[float],
) -> list[float]:  # fmt: skip
    """Of stages with so many microbatches, on the busiest replica, and activations alive; without these the work."""
    stages, runs = len(microbatches), len(f_s)
    if not alive:  # of a schedule that nothing is known of, not even where its runs are
        return [0.0] * stages
    lane = [run % stages for run in range(runs)]
    up = [0.0, *accumulate(f_s[run] + ahead_s[lane[run]] for run in range(runs))]  # first arrival at each run
    turn = up[runs] - ahead_s[lane[-1]]  # when the first microbatch is at the end
    into = [back_s[lane[run + 1]] if run < runs - 1 else 0.0 for run in range(runs)]
    down = [0.0] * (runs + 1)  # of a gradient, from the end through this run
    for run in reversed(range(runs)):
        down[run] = down[run + 1] + into[run] + b_s[run]
    before = [0.0, *accumulate(b_s[stage] + into[stage] for stage in range(stages))]
    least = [0.0] * stages
    for j in range(stages):
        own = range(j, runs, stages)
        f_own, b_own = [f_s[run] for run in own], [b_s[run] for run in own]
        work = microbatches[j] * (sum(f_own) + sum(b_own))
        stays = sum(turn - up[run] + down[run] for run in own)
        ramps = (alive[j] - 1) / 2 * (min(f_own) + min(b_own))  # while fewer are alive, at the start and at the end
        end = max(
            up[j] + work,
            turn + down[own[-1]] - b_own[-1] + work - alive[j] * max(f_own),
            up[j] + microbatches[j] * stays / alive[j] + ramps,
        )
        for stage in range(j + 1):
            least[stage] = max(least[stage], end + before[j] - before[stage])
    return least


@lru_cache(maxsize=4096)
def most_in_flight(name: str, microbatches: int, replicas: tuple[int, ...], vp: int) -> tuple[int, ...]:
    """Most activations of a run alive on a lane of each stage: the order of actions decides it, not their duration."""
    if set(replicas) == {1} and name in FORMS:
        return FORMS[name](microbatches, len(replicas), vp)
    if _in_closed_form(name, microbatches, replicas, len(replicas) * vp):
        return most_alive(name, microbatches, replicas, vp)
    if name in FORMS:
        return tuple(per_stage(replicas, ragged_order(name, microbatches, replicas, vp).alive))
    ones = (1.0,) * len(replicas) * vp
    return _simulated(name, microbatches, replicas, ones, ones, ()).in_flight


@lru_cache(maxsize=512)
def _simulated(
    name: str,
    microbatches: int,
    replicas: tuple[int, ...],
    f_s: tuple[float, ...],
    b_s: tuple[float, ...],
    hops: tuple[tuple[tuple[int, int], float], ...],
    w_s: tuple[float, ...] = (),
) -> Pipeline:
    schedule = schedule_for(name, microbatches, replicas, len(f_s) // len(replicas))
    seconds = dict(hops)
    i_s = tuple(b - w for b, w in zip(b_s, w_s, strict=True)) if w_s else None
    send_s = (lambda src, dst: seconds[src, dst]) if hops else 0.0
    run = simulate(schedule, Costs(f_s, b_s, send_s=send_s, i_s=i_s, w_s=w_s or None))
    lane_ends = [0.0] * schedule.num_lanes
    for event in run.events:
        if event.action.is_compute:
            lane_ends[event.lane] = max(lane_ends[event.lane], event.end_s)
    ends, busy, alive = ([0.0] * len(replicas) for _ in range(3))
    for (number, _), lane in schedule.placement.items():
        stage = host_of(number, len(replicas), lies_in_v(name))
        ends[stage] = max(ends[stage], lane_ends[lane])
        busy[stage] = max(busy[stage], run.busy_s[lane])
        alive[stage] = max(alive[stage], run.peak_activations[lane])
    bubble = 1 - sum(run.busy_s) / (schedule.num_lanes * max(ends))
    return Pipeline(tuple(ends), tuple(busy), tuple(map(int, alive)), bubble)
