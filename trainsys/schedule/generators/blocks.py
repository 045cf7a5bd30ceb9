"""A building block repeated for every microbatch: schedules of two runs per lane in a V whose activations are chosen
(Qi et al. 2024, arXiv:2405.15362, section 4).

A block says in which slot, of one unit each, a lane does what for microbatch 0: F down the V, F up, I down, I up, the
legs 0 to 3. Microbatch k does the same 6·k slots later, and two of six slots are left for W. How long an activation
stays within the block decides how many there are. Before the steady phase and after it slots are free: ops move there
if no lane keeps more than before, first with W as an op of its own, then with W in any free slot.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.generators.columns import Column, Rows

PERIOD = 6
_W = 4  # a leg of its own, in the first pass

Slots = list[list[int]]  # of one lane: by leg, the slot of each microbatch


def repeated(column: Column, block: Sequence[Sequence[int]], turn: int = 0) -> Rows:
    """What each lane does.

    Args:
        block: by lane, the slots of legs 0 to 3 of microbatch 0.
        turn: slots between the end of F and the begin of I where the V turns.
    """
    shorter = 4 * column.depth + 8
    if column.microbatches > shorter:
        rows = [_extended(row, column.microbatches - shorter) for row in _rows(column.depth, shorter, block, turn)]
        if all(rows):
            return rows
    return _rows(column.depth, column.microbatches, block, turn)


def _extended(row: Sequence[Action], more: int) -> list[Action]:
    """A lane's actions with so `more` microbatches in the steady phase; nothing where none is found in the middle."""

    def later(actions: Sequence[Action], by: int) -> list[Action]:
        return [Action(action.stage, action.kind, action.microbatch + by) for action in actions]

    for cut in range(len(row) // 2, len(row) - 3 * PERIOD):
        period = row[cut : cut + PERIOD]
        if all(row[cut + k * PERIOD : cut + (k + 1) * PERIOD] == later(period, k) for k in (-1, 1, 2)):
            middle = [action for k in range(more) for action in later(period, k)]
            return [*row[:cut], *middle, *later(row[cut:], more)]
    return []


def _rows(depth: int, m: int, block: Sequence[Sequence[int]], turn: int) -> list[list[Action]]:
    lanes = [[list(range(first, first + PERIOD * m, PERIOD)) for first in legs] for legs in block]
    lanes = _moved([[*legs, _w_slots(legs, False)[0]] for legs in lanes], turn)
    lanes = _moved([legs[:_W] for legs in lanes], turn)
    return [_row(legs[:_W], lane, depth) for lane, legs in enumerate(lanes)]


def _row(legs: Slots, lane: int, depth: int) -> list[Action]:
    """The lane's actions by slot, W for the leg that came down before W for the one that went up."""
    down, up = lane, 2 * depth - 1 - lane
    ops = zip([*legs, *_w_slots(legs, True)], (Kind.F, Kind.F, Kind.I, Kind.I, Kind.W, Kind.W), strict=True)
    runs = (down, up, up, down, up, down)
    timed = [
        (slot, Action(run, kind, mb)) for (slots, kind), run in zip(ops, runs, strict=True)
        for mb, slot in enumerate(slots)
    ]  # fmt: skip
    return [action for _, action in sorted(timed, key=lambda pair: pair[0])]


def _w_slots(legs: Slots, apart: bool) -> Slots:
    """W in the free slots as soon as there is one to do: of both legs together, or of each apart and leg 2 first."""
    leg_at = {slot: leg for leg, slots in enumerate(legs) for slot in slots}
    end, slot, waiting = max(leg_at), 0, [0, 0]
    found: Slots = [[], []]
    while slot <= end or any(waiting):
        leg = leg_at.get(slot)
        if leg is None:
            half = 0 if waiting[0] else 1
            if waiting[half]:
                waiting[half] -= 1
                found[half].append(slot)
        elif leg >= 2:
            waiting[leg - 2 if apart else 0] += 1
        slot += 1
    return found


def _moved(lanes: list[Slots], turn: int) -> list[Slots]:
    """Ops outside of the steady phase as early as they can be, then everything as early as its order allows.

    The steady phase is from the first I up the V on lane 0 to its last new forward. With W among the legs what comes
    before it moves too.
    """
    ops = sorted(
        (slot, lane, leg, mb) for lane, legs in enumerate(lanes) for leg, slots in enumerate(legs)
        for mb, slot in enumerate(slots)
    )  # fmt: skip
    with_w = len(lanes[0]) > _W
    steady, after = (lanes[0][3][0], 0, 3), (lanes[0][0][-1], 0, 0)
    memories = [_Memory(legs) for legs in lanes]
    most = max(memory.peak for memory in memories)
    backwards: Slots = [[] for _ in lanes]  # slots of I, ascending, as far as they are decided
    for slot, lane, leg, mb in ops:
        if (with_w and (slot, lane, leg) < steady) or (slot, lane, leg) > after:
            earliest = 1 + _needed(lanes, lane, leg, mb, turn)
            if leg == _W:
                earliest = max(earliest, 1 + backwards[lane][mb])
            slot = memories[lane].move(slot, earliest, most)
            lanes[lane][leg][mb] = slot
        if leg in (2, 3):
            insort(backwards[lane], slot)
    return _squeezed(lanes if with_w else [[*legs, _w_slots(legs, False)[0]] for legs in lanes], turn)


def _needed(lanes: list[Slots], lane: int, leg: int, mb: int, turn: int) -> int:
    """The slot of the last op that this one needs; -1 if it needs none."""
    before = lane - 1 if leg in (0, 2) else lane + 1
    slots = [-1]
    if leg < _W and 0 <= before < len(lanes):
        slots.append(lanes[before][leg][mb])
    if 0 < leg < _W:
        slots.append(lanes[lane][leg - 1][mb] + (turn if leg == 2 and lane == 0 else 0))
    if mb:
        slots.append(lanes[lane][leg][mb - 1])
    return max(slots)


def _squeezed(lanes: list[Slots], turn: int) -> list[Slots]:
    """Every op in the first slot that its inputs and the order on its lane allow."""
    ops = sorted(
        (slot, lane, leg, mb) for lane, legs in enumerate(lanes) for leg, slots in enumerate(legs)
        for mb, slot in enumerate(slots)
    )  # fmt: skip
    squeezed = [[[0] * len(slots) for slots in legs] for legs in lanes]
    free = [0 for _ in lanes]
    for _, lane, leg, mb in ops:
        slot = max(free[lane], 1 + _needed(squeezed, lane, leg, mb, turn))
        squeezed[lane][leg][mb] = slot
        free[lane] = slot + 1
    return squeezed


class _Memory:
    """One lane slot by slot: the leg that it is at, and the activations and pending W after it.

    Without W among the legs a free slot does one.
    """

    def __init__(self, legs: Slots) -> None:
        self.with_w = len(legs) > _W
        self.leg_at = [-1] * (1 + max(slots[-1] for slots in legs))
        for leg, slots in enumerate(legs):
            for slot in slots:
                self.leg_at[slot] = leg
        self.after: list[tuple[int, int]] = []
        state = (0, 0)
        for leg in self.leg_at:
            state = self.step(state, leg)
            self.after.append(state)

    @property
    def peak(self) -> int:
        return max(alive for alive, _ in self.after)

    def step(self, state: tuple[int, int], leg: int) -> tuple[int, int]:
        alive, waiting = state
        if leg in (0, 1):
            return alive + 1, waiting
        if leg == _W:
            return alive - 1, waiting
        if self.with_w:
            return state
        if leg in (2, 3):
            return alive, waiting + 1
        return (alive - 1, waiting - 1) if waiting else state

    def move(self, slot: int, earliest: int, most: int) -> int:
        """The op at `slot` goes to the first free one from `earliest` on with which no more than `most` are alive."""
        for target in range(earliest, slot):
            if self.leg_at[target] < 0 and self.moves(slot, target, most):
                return target
        return slot

    def moves(self, slot: int, target: int, most: int) -> bool:
        leg_at = self.leg_at
        leg_at[target], leg_at[slot] = leg_at[slot], -1
        state, changed = self.after[target - 1] if target else (0, 0), []
        for at in range(target, len(leg_at)):
            state = self.step(state, leg_at[at])
            if at > slot and state == self.after[at]:
                break
            if state[0] > most:
                leg_at[target], leg_at[slot] = -1, leg_at[target]
                return False
            changed.append(state)
        self.after[target : target + len(changed)] = changed
        return True
