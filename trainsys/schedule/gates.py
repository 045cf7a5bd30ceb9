"""What the passes of the vocabulary wait for: messages of all lanes to one, of one to all, and of all to all.

Every lane on the way of a microbatch has rows of both vocabulary matrices and runs, under its first stage, E, S, T and
G. The first stage's F needs all E; each S the output of the last stage; each T all S; the last stage's backward all S
(one barrier) or all T (two); each G the first stage's backward.

A message has a number as those between stages have: those of the ends, which nobody else sends, are twice the work,
and 1 more for a gradient; beyond them each work has three more, for its S, T and G.
"""

from __future__ import annotations

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.numbered import CODE, Ways
from trainsys.schedule.schedule import Schedule, ScheduleError

_F, _B, _I = (CODE[kind] for kind in (Kind.F, Kind.B, Kind.I))
_E, _S, _T, _G = (CODE[kind] for kind in (Kind.E, Kind.S, Kind.T, Kind.G))
WAITING = (Kind.S, Kind.T, Kind.G)  # for the three messages of a work, in order


class Gates:
    """The messages of one schedule with vocabulary passes.

    Attributes:
        missing: message -> how many actions have to end before it is there.
        of: of each microbatch, the first works of all lanes on its way, which have E, S, T and G, in order of stages.
        firsts: all of them.
        count: messages, those between stages included.

    Raises:
        ScheduleError: microbatches have paths of their own, on which a lane's first stage may not lie.
    """

    def __init__(self, schedule: Schedule, ways: Ways) -> None:
        if schedule.routes.paths:
            raise ScheduleError(
                "with the vocabulary on all lanes microbatches visit all stages in order; give no paths"
            )
        self.m, works = schedule.routes.num_microbatches, len(ways.lane_of)
        self.base, self.count, self.ways = 2 * works, 5 * works, ways
        self.last = works - self.m  # of microbatch 0 on the last stage
        self.barrier = _S if schedule.vocabulary == "one_barrier" else _T
        self.of = [self._of(mb) for mb in range(self.m)]
        self.firsts = {work for own in self.of for work in own}
        self.missing: dict[int, int] = {}
        for mb, own in enumerate(self.of):
            self.missing |= {2 * mb: len(own), 2 * (self.last + mb) + 1: len(own)}
            for work in own:
                self.missing |= {
                    self.base + 3 * work: 1,
                    self.base + 3 * work + 1: len(own),
                    self.base + 3 * work + 2: 1,
                }

    def _of(self, microbatch: int) -> tuple[int, ...]:
        first: dict[int, int] = {}
        for work in range(microbatch, len(self.ways.lane_of), self.m):
            first.setdefault(self.ways.lane_of[work], work)
        return tuple(first.values())

    def needs(self, kind: int, work: int) -> int:
        """The message that an action waits for; -1: none of these."""
        if kind == _F:
            return 2 * work if work < self.m else -1
        if kind in (_B, _I):
            return 2 * work + 1 if work >= self.last else -1
        return -1 if kind not in (_S, _T, _G) else self.base + 3 * work + (kind - _S)

    def feeds(self, kind: int, work: int) -> tuple[int, ...]:
        """The messages that the end of an action is needed for."""
        mb, base = work % self.m, self.base
        found: list[int] = []
        if kind == _E:
            found = [2 * mb]
        elif kind == _F and work >= self.last:
            found = [base + 3 * w for w in self.of[mb]]
        elif kind == _S:
            found = [base + 3 * w + 1 for w in self.of[mb]]
        elif kind in (_B, _I) and work < self.m:
            found = [base + 3 * w + 2 for w in self.of[mb]]
        if kind == self.barrier:
            found.append(2 * (self.last + mb) + 1)
        return tuple(found)

    def receiver(self, message: int) -> int:
        """The lane that waits for it."""
        return self.ways.lane_of[message // 2 if message < self.base else (message - self.base) // 3]

    def shared(self, message: int) -> bool:
        """Whether it is one of many that are sent, or that arrive, one after the other; S go out to all at once."""
        return message < self.base or (message - self.base) % 3 != 1


def needed(schedule: Schedule, action: Action) -> list[tuple[Action, ...]]:
    """What passes of the vocabulary have to end before `action`, and what before one of them: of each tuple any."""
    mb, kind, last = action.microbatch, action.kind, schedule.routes.num_stages - 1
    if kind is Kind.S:
        return [(Action(last, Kind.F, mb),)]
    if kind is Kind.G:
        return [(Action(0, Kind.B, mb), Action(0, Kind.I, mb))]
    wanted = None
    if kind is Kind.F and action.stage == 0:
        wanted = Kind.E
    elif kind is Kind.T or (kind in (Kind.B, Kind.I) and action.stage == last):
        wanted = Kind.S if kind is Kind.T or schedule.vocabulary == "one_barrier" else Kind.T
    return [] if wanted is None else [(Action(stage, wanted, mb),) for stage in first_stages(schedule, mb)]


def first_stages(schedule: Schedule, microbatch: int) -> tuple[int, ...]:
    """The first stage of each lane on the way of `microbatch`."""
    first: dict[int, int] = {}
    for stage in range(schedule.routes.num_stages):
        first.setdefault(schedule.lane_of(stage, microbatch), stage)
    return tuple(first.values())


def gates_of(schedule: Schedule, ways: Ways) -> Gates | None:
    """None where the vocabulary is at the ends."""
    return None if schedule.vocabulary == "ends" else Gates(schedule, ways)
