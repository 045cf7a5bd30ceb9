"""Random schedules, broken at random: the verifier accepts exactly what an executor of tokens ends with."""

import contextlib
import dataclasses
import itertools
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.schedule import Action, Costs, Footprint, Kind, Routes, Schedule, ScheduleError, simulate, verify
from trainsys.schedule.comms import insert_comms
from trainsys.schedule.residency import with_offload
from trainsys.schedule.schedule import dumps, loads

F, B, I, W, R = Kind.F, Kind.B, Kind.I, Kind.W, Kind.R  # noqa: E741
NAMED = re.compile(r"lane \d+( waits at |: (the |its )?)-?\d+[A-Z]+(_[FB])?-?\d+")


def random_routes(rng: random.Random) -> Routes:
    """Up to 5 stages, each microbatch through all of them or through some, in any order."""
    stages, m = rng.randint(1, 5), rng.randint(1, 5)
    paths = [tuple(rng.sample(range(stages), rng.randint(1, stages))) for _ in range(m)] if rng.random() < 0.6 else []
    table = []
    for stage in range(stages):
        here = [mb for mb in range(m) if not paths or stage in paths[mb]]
        rng.shuffle(here)
        count = rng.randint(1, min(3, len(here))) if here else 0
        row = [-1] * m
        for i, mb in enumerate(here):
            row[mb] = i if i < count else rng.randrange(count)
        table.append(tuple(row))
    return Routes(tuple(table), tuple(paths))


def needs_of(routes: Routes, rng: random.Random) -> dict[Action, list[Action]]:
    """A step's compute actions, backwards split or recomputed here and there, each with those that it follows."""
    needs: dict[Action, list[Action]] = {}
    for mb in range(routes.num_microbatches):
        path = list(routes.path(mb))
        for before, stage in itertools.pairwise([None, *path]):
            needs[Action(stage, F, mb)] = [] if before is None else [Action(before, F, mb)]
        later: list[Action] = []
        for stage in reversed(path):
            split, again = rng.random() < 0.5, rng.random() < 0.3
            forward, backward = Action(stage, F, mb), Action(stage, I if split else B, mb)
            needs[backward] = [forward, *later]
            if again:
                needs[Action(stage, R, mb)] = [forward]
                needs[backward].append(Action(stage, R, mb))
            if split:
                needs[Action(stage, W, mb)] = [backward]
            later = [backward]
    return needs


def random_schedule(rng: random.Random) -> Schedule:
    """Any placement, each lane in a random order that some run of the whole step could have."""
    routes = random_routes(rng)
    pairs = [(stage, r) for stage, count in enumerate(routes.replicas) for r in range(count)]
    rng.shuffle(pairs)
    lanes: list[list[Action]] = [[] for _ in range(rng.randint(1, len(pairs)))]
    placement = {pair: i if i < len(lanes) else rng.randrange(len(lanes)) for i, pair in enumerate(pairs)}
    needs, done = needs_of(routes, rng), set[Action]()
    while len(done) < len(needs):
        ready = [a for a, earlier in needs.items() if a not in done and done.issuperset(earlier)]
        action = rng.choice(ready)
        done.add(action)
        lanes[placement[action.stage, routes.table[action.stage][action.microbatch]]].append(action)
    schedule = Schedule("random", routes, tuple(map(tuple, lanes)), placement)
    some = [stage for stage in range(routes.num_stages) if rng.random() < 0.5]
    ahead, prefetch, first = rng.randint(0, 3), rng.randint(0, 3), rng.random() < 0.5
    if first:
        return insert_comms(with_offload(schedule, some, ahead), prefetch)
    return with_offload(insert_comms(schedule, prefetch), some, ahead)


class Tokens:
    """Executes a schedule with tokens for tensors; knows nothing of how the verifier does it."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.routes = schedule, schedule.routes
        self.done: Counter[Action] = Counter()
        self.mail: set[Action] = set()  # by its SEND

    def runs(self) -> bool:
        left = [list(lane) for lane in self.schedule.lanes]
        try:
            moved = True
            while moved:
                moved = False
                for lane, actions in enumerate(left):
                    while actions and self.step(lane, actions[0]):
                        self.done[actions.pop(0)] += 1
                        moved = True
        except AssertionError:
            return False
        return not any(left) and self.complete()

    def neighbour(self, stage: int, mb: int, step: int) -> int | None:
        path = list(self.routes.path(mb))
        place = path.index(stage) + step
        return path[place] if 0 <= place < len(path) else None

    def step(self, lane: int, action: Action) -> bool:
        """False: wait for a message. AssertionError: no executor can do this."""
        stage, kind, mb = action.stage, action.kind, action.microbatch
        assert 0 <= stage < self.routes.num_stages and 0 <= mb < self.routes.num_microbatches
        assert self.routes.table[stage][mb] >= 0 and self.schedule.lane_of(stage, mb) == lane
        has = {k for k in Kind if self.done[Action(stage, k, mb)]}
        assert kind not in has
        backward = bool(has & {B, I})
        away = Kind.OFFLOAD in has and Kind.RELOAD not in has
        if kind is F:
            return self.arrived(lane, action, -1)
        if kind in (B, I, R):
            assert F in has and not backward and not away and not (kind is B and W in has)
            return kind is R or self.arrived(lane, action, 1)
        if kind is W:
            assert I in has
        elif kind is Kind.OFFLOAD:
            assert F in has and R not in has and not backward
        elif kind is Kind.RELOAD:
            assert away
        else:
            forward = kind in (Kind.SEND_F, Kind.RECV_F)
            sends = kind in (Kind.SEND_F, Kind.SEND_B)
            other = self.neighbour(stage, mb, 1 if forward == sends else -1)
            assert other is not None and self.schedule.lane_of(other, mb) != lane
            assert not sends or (F in has if forward else backward)
            if sends:
                self.mail.add(Action(other, Kind.RECV_F if forward else Kind.RECV_B, mb))
        return True

    def arrived(self, lane: int, action: Action, step: int) -> bool:
        """Whether the input of F (from before) or of a backward (from after) is there."""
        source = self.neighbour(action.stage, action.microbatch, step)
        if source is None:
            return True
        if self.schedule.lane_of(source, action.microbatch) == lane:
            assert any(self.done[Action(source, k, action.microbatch)] for k in ((F,) if step < 0 else (B, I)))
            return True
        receive = Action(action.stage, Kind.RECV_F if step < 0 else Kind.RECV_B, action.microbatch)
        assert self.done[receive]
        return receive in self.mail

    def complete(self) -> bool:
        """All gradients made, no tensor left in the air, nothing left on the host."""
        for mb in range(self.routes.num_microbatches):
            for stage in self.routes.path(mb):
                kinds = {k for k in Kind if self.done[Action(stage, k, mb)]}
                if F not in kinds or (B in kinds) == (I in kinds) or (I in kinds) != (W in kinds):
                    return False
                if (Kind.OFFLOAD in kinds) != (Kind.RELOAD in kinds):
                    return False
        received = {a for a in self.done if a.kind in (Kind.RECV_F, Kind.RECV_B) and self.done[a]}
        return received == self.mail


def mutate(schedule: Schedule, rng: random.Random) -> Schedule:
    lanes = [list(lane) for lane in schedule.lanes]
    lane = rng.choice([lane for lane in lanes if lane])
    i, j = rng.randrange(len(lane)), rng.randrange(len(lane))
    match rng.randrange(8):
        case 0:
            del lane[i]
        case 1:
            lane.insert(j, lane[i])
        case 2:
            lane[i], lane[j] = lane[j], lane[i]
        case 3 | 4:  # nearby, so that it often still runs
            lane.insert(max(0, i + rng.randint(-3, 3)), lane.pop(i))
        case 5:
            lane[i] = dataclasses.replace(lane[i], kind=rng.choice(list(Kind)))
        case 6:
            lane[i] = dataclasses.replace(lane[i], stage=lane[i].stage + rng.choice((-1, 1)))
        case 7:
            rng.choice(lanes).append(lane.pop(i))
    return dataclasses.replace(schedule, lanes=tuple(map(tuple, lanes)))


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_what_can_run_is_accepted_and_simulated_in_order(rng: random.Random) -> None:
    schedule = random_schedule(rng)
    verify(schedule)
    assert Tokens(schedule).runs()
    assert loads(dumps(schedule)) == schedule
    stages, send_s = schedule.routes.num_stages, rng.choice((0.0, 0.5))
    f, b, copy = ([rng.randint(0, 4) / 4 for _ in range(stages)] for _ in range(3))
    run = simulate(schedule, Costs(f, b, send_s=send_s, offload_s=copy, reload_s=copy))
    ends = {event.action: event.end_s for event in run.events}
    posts = (Kind.RECV_F, Kind.RECV_B)
    assert ends.keys() == {a for lane in schedule.lanes for a in lane if a.kind not in posts}
    assert run.step_s == max(ends.values())
    free = [0.0] * schedule.num_lanes
    for lane in range(schedule.num_lanes):
        for event in run.events_of(lane):
            action, start = event.action, event.start_s
            if not action.is_compute:
                continue
            assert start >= free[lane]
            free[lane] = event.end_s
            if action.kind in (R, B, I):
                assert start >= ends.get(dataclasses.replace(action, kind=Kind.RELOAD), 0.0)
            if action.kind in (F, B, I):
                wanted = Action(action.stage, Kind.RECV_F if action.kind is F else Kind.RECV_B, action.microbatch)
                sender = schedule.counterpart(wanted)
                if sender is not None and schedule.peer(wanted) != lane:
                    assert start >= ends[sender]


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_memory_of_any_schedule_starts_and_ends_at_nothing(rng: random.Random) -> None:
    schedule = random_schedule(rng)
    stages = schedule.routes.num_stages
    kept = [rng.randint(4, 9) for _ in range(stages)]
    footprint = Footprint(kept, [rng.randint(0, k) for k in kept], [rng.randint(0, k) for k in kept])
    run = simulate(schedule, Costs([1.0] * stages, [2.0] * stages, offload_s=[0.5] * stages, reload_s=[0.5] * stages))
    for lane in range(schedule.num_lanes):
        curve = run.memory(lane, footprint)
        assert [t for t, _ in curve] == sorted(t for t, _ in curve)
        assert min(alive for _, alive in curve) >= 0
        assert curve[-1][1] == 0
        assert run.peak_bytes(lane, footprint) <= run.peak_activations[lane] * max(kept)


def test_mutants_are_accepted_exactly_if_they_run() -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(900):
        rng = random.Random(seed)
        mutant = mutate(random_schedule(rng), rng)
        runs = Tokens(mutant).runs()
        stages = mutant.routes.num_stages
        costs = Costs([1.0] * stages, [2.0] * stages, send_s=0.5)
        if runs:
            outcomes["runs"] += 1
            verify(mutant)
            simulate(mutant, costs)
        else:
            with contextlib.suppress(ScheduleError):  # it ends, or says why it cannot
                simulate(mutant, costs)
            with pytest.raises(ScheduleError) as error:
                verify(mutant)
            message = str(error.value)
            assert NAMED.search(message) and "\n" not in message, message
            outcomes["waits" if "waits at" in message else "wrong"] += 1
    assert outcomes["runs"] > 100 and outcomes["wrong"] > 600 and outcomes["waits"] > 5, outcomes
