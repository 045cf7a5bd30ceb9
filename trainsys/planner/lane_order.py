"""A schedule of equal replicas as one list of numbers, and its times: a simulation without events, for searches.

One replica stands for all of a stage, so a lane is a stage. The times are those of `trainsys.schedule.simulate`: a test
compares them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache

from trainsys.schedule import GENERATORS, Problem, Routes
from trainsys.schedule.actions import Action, Kind


@lru_cache(maxsize=64)
def lane_order(name: str, microbatches: int, stages: int, vp: int) -> array[int]:
    """The compute actions of all lanes in an order in which nothing comes before what it needs.

    Of m microbatches and R runs, F of run r for microbatch i is r·m + i, and B R·m more.
    """
    schedule = GENERATORS[name](Problem(Routes.balanced(microbatches, (1,) * stages, vp), vp))
    return sorted_actions(schedule.lanes, microbatches, stages * vp)


def sorted_actions(lanes: Sequence[Sequence[Action]], microbatches: int, runs: int) -> array[int]:
    """The compute actions of `lanes` as numbers, each lane's in its own order and none before what it needs."""
    count = runs * microbatches
    numbers = [
        [a.stage * microbatches + a.microbatch + (count if a.kind is Kind.B else 0) for a in lane] for lane in lanes
    ]
    done, at, order = bytearray(2 * count), [0] * len(numbers), array("i")
    left = list(range(len(numbers)))
    while left:
        before = len(order)
        for lane in left:
            actions, place = numbers[lane], at[lane]
            while place < len(actions) and _ready(actions[place], done, microbatches, count):
                done[actions[place]] = 1
                order.append(actions[place])
                place += 1
            at[lane] = place
        left = [lane for lane in left if at[lane] < len(numbers[lane])]
        assert len(order) > before or not left, f"{runs} runs of {microbatches} microbatches wait in a cycle"
    return order


def _ready(action: int, done: bytearray, microbatches: int, count: int) -> bool:
    if action < count:
        return action < microbatches or bool(done[action - microbatches])
    after = action + microbatches
    return bool(done[action - count]) and (after >= 2 * count or bool(done[after]))


def lane_times(
    order: Sequence[int], microbatches: int, stages: int, f_s: Sequence[float], b_s: Sequence[float],
    ahead_s: Sequence[float], back_s: Sequence[float],
) -> list[float]:  # fmt: skip
    """When each lane ends.

    A transfer starts when its producer is done, the receiver has begun the compute action before the one that waits
    (which posts the receive), and the link is free: as the executor runs it.

    Args:
        ahead_s, back_s: of a message from each lane to the next (from the last to the first under vp), and from each
            lane to the one before.
    """
    runs = len(f_s)
    count = runs * microbatches
    end = [0.0] * (2 * count)
    now, posted = [0.0] * stages, [0.0] * stages  # end of a lane's last compute action, and of the one before it
    free = {False: [0.0] * stages, True: [0.0] * stages}  # links to each lane, from the lane before and from the next
    ahead, back = free[False], free[True] if stages != 2 else free[False]
    lane_of, alone = [run % stages for run in range(runs)], stages == 1
    top = 2 * count
    for action in order:
        if action < count:
            run = action // microbatches
            lane = lane_of[run]
            start, seconds = now[lane], f_s[run]
            if run:
                arrived = end[action - microbatches]
                if not alone:
                    source = lane - 1 if lane else stages - 1
                    arrived = max(arrived, posted[lane], ahead[lane]) + ahead_s[source]
                    ahead[lane] = arrived
                if arrived > start:
                    start = arrived
        else:
            run = (action - count) // microbatches
            lane = lane_of[run]
            start, seconds = now[lane], b_s[run]
            after = action + microbatches
            if after < top:
                arrived = end[after]
                if not alone:
                    source = lane + 1 if lane + 1 < stages else 0
                    arrived = max(arrived, posted[lane], back[lane]) + back_s[source]
                    back[lane] = arrived
                if arrived > start:
                    start = arrived
        posted[lane] = now[lane]
        now[lane] = end[action] = start + seconds
    return now
