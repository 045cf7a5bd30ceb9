"""Proof that a schedule computes the step and ends: complete, matched, ordered, free of cyclic waits.

What happens to one work (one stage's part of one microbatch) is followed as a set of bits: those of the kinds that it
has seen. A kind may come when all bits that it needs are there and none that it forbids, and leaves its own. B is I and
W at once, and a neighbour on the same lane leaves the bit of the receive that it saves. So one pass over each lane
proves its order, and when both neighbours end with the bits of the whole, each SEND has its RECV. What remains is
whether lanes wait for each other; that does not depend on what actions cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from trainsys.schedule.actions import VOCABULARY, Action, Kind
from trainsys.schedule.explain import refused, unfinished, waiting
from trainsys.schedule.gates import WAITING, Gates, gates_of
from trainsys.schedule.numbered import ACROSS, CODE, EDGE, LOCAL, Numbered, Ways, number
from trainsys.schedule.schedule import Schedule, ScheduleError

BIT = {kind: 1 << code for kind, code in CODE.items()}
AWAY = 1 << len(CODE)  # between OFFLOAD and RELOAD
NEVER = AWAY << 1  # needed by what must not stand here

_F, _I, _W = BIT[Kind.F], BIT[Kind.I], BIT[Kind.W]
_PASSES = BIT[Kind.E] | BIT[Kind.S] | BIT[Kind.T] | BIT[Kind.G]
_OPTIONAL = BIT[Kind.R] | BIT[Kind.OFFLOAD] | BIT[Kind.RELOAD]


class Rule(NamedTuple):
    """What an action asks of its work: bits that must be there and that must not, and those that it turns over.

    `hands`: 1 or -1 if its result goes to the work after or before it, on the same lane; else 0.
    """

    needs: int
    forbids: int
    turns: int
    hands: int = 0


def _rules(source: int, target: int) -> tuple[Rule, ...]:
    """A rule per kind's code, for works whose neighbours on the path are EDGE, ACROSS or LOCAL."""
    inputs = 0 if source == EDGE else BIT[Kind.RECV_F]
    gradient = _F | (0 if target == EDGE else BIT[Kind.RECV_B])
    down, up = int(target == LOCAL), -int(source == LOCAL)
    before, after = (0 if side == ACROSS else NEVER for side in (source, target))
    offload, reload, again = BIT[Kind.OFFLOAD], BIT[Kind.RELOAD], BIT[Kind.R]
    rules = {
        Kind.F: Rule(inputs, _F, _F, down),
        Kind.B: Rule(gradient, _I | AWAY, _I | _W, up),
        Kind.I: Rule(gradient, _I | AWAY, _I, up),
        Kind.W: Rule(_I, _W, _W),
        Kind.R: Rule(_F, again | _I | AWAY, again),
        Kind.SEND_F: Rule(_F | after, BIT[Kind.SEND_F], BIT[Kind.SEND_F]),
        Kind.RECV_F: Rule(before, BIT[Kind.RECV_F], BIT[Kind.RECV_F]),
        Kind.SEND_B: Rule(_I | before, BIT[Kind.SEND_B], BIT[Kind.SEND_B]),
        Kind.RECV_B: Rule(after, BIT[Kind.RECV_B], BIT[Kind.RECV_B]),
        Kind.OFFLOAD: Rule(_F, offload | again | _I, offload | AWAY),
        Kind.RELOAD: Rule(AWAY, reload, reload | AWAY),
        **dict.fromkeys((Kind.E, Kind.S, Kind.T, Kind.G), Rule(NEVER, 0, 0)),
    }
    return tuple(rules[kind] for kind in CODE)


def _with_passes(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """`rules` for the work of a lane's first stage, where every lane has a part of the vocabulary."""
    own = {kind: Rule(BIT[Kind.S] if kind is Kind.T else 0, BIT[kind], BIT[kind]) for kind in VOCABULARY}
    return tuple(own.get(kind, rules[code]) for kind, code in CODE.items())


def _whole(source: int, target: int) -> int:
    """The bits of a finished work, without the optional ones."""
    whole = _F | _I | _W
    for side, receive, send in ((source, Kind.RECV_F, Kind.SEND_B), (target, Kind.RECV_B, Kind.SEND_F)):
        whole |= (0 if side == EDGE else BIT[receive]) | (BIT[send] if side == ACROSS else 0)
    return whole


_SIDES = (EDGE, ACROSS, LOCAL)
RULES = [[_rules(source, target) for target in _SIDES] for source in _SIDES]
RULES_WITH_PASSES = [[_with_passes(rules) for rules in row] for row in RULES]
WHOLE = [[_whole(source, target) for target in _SIDES] for source in _SIDES]


def verify(schedule: Schedule) -> None:
    """Accept a schedule (with its comms) only if every executor that follows it ends with the step's gradients.

    Checked: every action is on the lane that its route says, once; every stage on a microbatch's path has one F and one
    B, or one F, I and W, in this order, so that each activation is used and freed; R comes once at most, between F and
    its backward; what OFFLOAD takes away after F, one RELOAD brings back before it is used; every tensor that crosses
    lanes has one SEND after its producer and one RECV before its consumer, and no other SEND or RECV exists; one that
    stays is made before it is used; lanes never wait for each other in a cycle. With
    the vocabulary on all lanes each has an E, S, T and G per microbatch, waited for as messages are. Time is linear in
    the actions.

    Raises:
        ScheduleError: naming the lane and the action, or the cycle.
    """
    numbered = number(schedule)
    gates = gates_of(schedule, numbered.ways)
    _check_orders(schedule, numbered, gates)
    _check_waits(schedule, numbered, gates)


def _check_orders(schedule: Schedule, numbered: Numbered, gates: Gates | None) -> None:
    """Each lane by itself: what is there may be there, and nothing is missing."""
    ways = numbered.ways
    rules = [RULES[source][target] for source, target in zip(ways.source, ways.target, strict=True)]
    wholes = [WHOLE[source][target] for source, target in zip(ways.source, ways.target, strict=True)]
    for work in gates.firsts if gates else ():
        rules[work] = RULES_WITH_PASSES[ways.source[work]][ways.target[work]]
        wholes[work] |= _PASSES
    seen = [0] * len(rules)
    for lane, (kinds, works) in enumerate(numbered.lanes):
        for place, (kind, work) in enumerate(zip(kinds, works, strict=True)):
            needs, forbids, turns, hands = rules[work][kind]
            bits = seen[work]
            if bits & forbids or needs & ~bits:
                raise ScheduleError(refused(schedule, lane, place))
            seen[work] = bits ^ turns
            if hands > 0:
                seen[ways.after[work]] |= BIT[Kind.RECV_F]
            elif hands:
                seen[ways.before[work]] |= BIT[Kind.RECV_B]
    for work, bits in enumerate(seen):
        if ways.lane_of[work] >= 0:
            absent = wholes[work] & ~bits
            if absent:
                raise ScheduleError(unfinished(schedule, work, [kind for kind in Kind if absent & BIT[kind]]))


_FORWARD, _SEND_F, _SEND_B = CODE[Kind.F], CODE[Kind.SEND_F], CODE[Kind.SEND_B]
_BACKWARD = (CODE[Kind.B], CODE[Kind.I])


def _check_waits(schedule: Schedule, numbered: Numbered, gates: Gates | None) -> None:
    """Run the lanes until nobody can go on."""
    lanes = range(schedule.num_lanes)
    left = [iter(_messages(numbered.ways, *numbered.lanes[lane])) for lane in lanes]
    missing: list[int] | bytearray = bytearray(b"\1") * (2 * len(numbered.ways.lane_of))  # actions, per message
    if gates is not None:
        left = [iter(_messages_with(gates, *numbered.lanes[lane])) for lane in lanes]
        missing = [gates.missing.get(message, 1) for message in range(gates.count)]
    waits: dict[int, int] = {}  # message -> lane
    runnable = list(reversed(lanes))
    while runnable:
        lane = runnable.pop()
        for message in left[lane]:
            if message < 0:
                missing[~message] -= 1
                if not missing[~message] and ~message in waits:
                    runnable.append(waits.pop(~message))
            elif missing[message]:
                waits[message] = lane
                break
    if waits:
        raise ScheduleError(waiting(schedule, {lane: _consumer(schedule, lane, m, gates) for m, lane in waits.items()}))


def _messages(ways: Ways, kinds: Iterable[int], works: Iterable[int]) -> list[int]:
    """What a lane waits for and, inverted, what it sends: twice the receiving work, and 1 more for a gradient."""
    messages = list[int]()
    for kind, work in zip(kinds, works, strict=True):
        if kind == _FORWARD:
            if ways.source[work] == ACROSS:
                messages.append(2 * work)
        elif kind in _BACKWARD:
            if ways.target[work] == ACROSS:
                messages.append(2 * work + 1)
        elif kind == _SEND_F:
            messages.append(~(2 * ways.after[work]))
        elif kind == _SEND_B:
            messages.append(~(2 * ways.before[work] + 1))
    return messages


def _messages_with(gates: Gates, kinds: Iterable[int], works: Iterable[int]) -> Iterator[int]:
    """The same with those of the vocabulary's passes."""
    for kind, work in zip(kinds, works, strict=True):
        need = gates.needs(kind, work)
        if need >= 0:
            yield need
        yield from _messages(gates.ways, (kind,), (work,))
        yield from (~message for message in gates.feeds(kind, work))


def _consumer(schedule: Schedule, lane: int, message: int, gates: Gates | None) -> Action:
    """The action of `lane` that waits for `message`."""
    if gates is not None and message >= gates.base:
        work, which = divmod(message - gates.base, 3)
        stage, mb = divmod(work, schedule.routes.num_microbatches)
        return Action(stage, WAITING[which], mb)
    stage, mb = divmod(message // 2, schedule.routes.num_microbatches)
    kinds = (Kind.B, Kind.I) if message % 2 else (Kind.F,)
    return next(a for a in schedule.lanes[lane] if a.kind in kinds and (a.stage, a.microbatch) == (stage, mb))
