"""The injector inside each rank: it carries out what the schedule has for this rank, where it says."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainsys.elastic.faults.event import CHANGE_PHASES, FaultEvent
from trainsys.elastic.faults.nemesis import NothingThere, Victim
from trainsys.elastic.faults.notes import announce, process_of, withdraw_note, write_note
from trainsys.elastic.faults.registry import NEMESES
from trainsys.elastic.faults.slowness import Slowness

_ARRIVAL_S = 10.0  # a drill waits so long for a fresh rank that was to be there
_LOOK_S = 0.005
_HELLO_S = 0.02  # from its announcement to the manager knowing of it


class Injector:
    """Carries out this rank's faults; its `at` hangs in every phase of step and transition.

    Just before it strikes it leaves a note in `folder` with the time (CLOCK_MONOTONIC), so that the time to recovery
    can be counted from the fault itself, and tells `struck` of the fault and the step.

    Args:
        victim: what the strikes may touch; None: signals only.
        world_size: ranks that work when all is well; the first that joins comes after the spares. 0: nobody is
            waited for.
        waited: told of the seconds for which this rank waited for a fresh one, and the step.
    """

    def __init__(
        self, events: Sequence[FaultEvent], rank: int, folder: Path,
        struck: Callable[[FaultEvent, int], None] = lambda event, step: None, victim: Victim | None = None,
        world_size: int = 0, waited: Callable[[float, int], None] = lambda seconds, step: None,
    ) -> None:  # fmt: skip
        self._events = [e for e in events if e.rank == rank and e.kind != "join"]
        self._full = sorted(e.step for e in events if e.kind == "full")
        self._joins = sorted(e.step for e in events if e.kind == "join")
        self._due = {e.step for e in events if e.kind not in ("join", "full")}
        self._rank, self._folder, self._struck, self._victim = rank, folder, struck, victim
        spares = victim.config.elastic.spares if victim is not None else 0
        self._first_fresh, self._waited = world_size + spares if world_size else None, waited
        fresh = self._first_fresh is not None and rank >= self._first_fresh
        self._came_late = fresh and victim is not None and bool(victim.config.faults.schedule)
        self._first: int | None = None  # step that this rank works in
        self.step = 0
        self.microbatches = 1  # of this rank in a step
        self.portions = 1  # of a transition
        self._entered: dict[tuple[int, str], int] = {}
        self._slow: Slowness | None = None
        clock = victim.config.faults if victim is not None else None
        self._told = bool(events) or (clock is not None and bool(clock.mtbf_s or clock.trace))

    def arrived(self) -> None:
        """The rank is about to say hello."""
        if self._told:
            announce(self._folder, self._rank)

    def at(self, phase: str) -> None:
        """Entering `phase`: strike here if the schedule says so.

        In forward and backward at the second microbatch, in a transfer by portions at the middle one. When a fresh rank
        begins to work depends on the clock: of a schedule it gets in its first step what was to be before.
        """
        if phase == "forward" and self._joins:
            self._await_fresh()
        if self._slow is not None and not self._slow.at(phase, self.step):
            self._slow = None
        if not self._events:
            return
        if phase == "forward" and self._first is None:
            self._first = self.step
        count = self._entered[self.step, phase] = self._entered.get((self.step, phase), 0) + 1
        inside = min(2, self.microbatches) if phase in ("forward", "backward") else 1
        inside = self.portions // 2 + 1 if phase == "transfer" else inside
        for event in list(self._events):
            due = event.awaits(self.step) if event.phase in CHANGE_PHASES else self.step == self._step_of(event)
            if due and event.phase == phase and count >= inside:
                self._strike(event)

    def _step_of(self, event: FaultEvent) -> int:
        return max(event.step, self._first or 0) if self._came_late else event.step

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """A checkpoint of `step` steps is written inside; no byte of it reaches the disk if the schedule says so."""
        due = [s for s in self._full if s <= step]
        self._full = [s for s in self._full if s > step]
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        for event in (FaultEvent("full", s) for s in due if self._first_time(s, step)):
            self._leave_note(event)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def _first_time(self, due: int, step: int) -> bool:
        """Whether no checkpoint before this one was the one: a rank that joined late did not see it."""
        marker = self._folder / f"full-{due}"
        with suppress(FileExistsError):
            marker.touch(exist_ok=False)
            marker.write_text(str(step))
        return marker.read_text() in ("", str(step))

    def _strike(self, event: FaultEvent) -> None:
        self._events.remove(event)
        self._leave_note(event)
        nemesis = NEMESES[event.kind]
        if event.kind == "slow":
            self._slow = Slowness(event, self.step)
        elif nemesis.strike is not None:
            assert self._victim is not None or nemesis.fatal
            try:
                nemesis.strike(event, self._victim)  # type: ignore[arg-type]
            except NothingThere as nothing:
                withdraw_note(self._folder, event, self._rank, str(nothing))

    def _leave_note(self, event: FaultEvent) -> None:
        write_note(self._folder, event, self._rank, self.step, NEMESES[event.kind].fatal)
        self._struck(event, self.step)

    def _await_fresh(self) -> None:
        """Before the step of a fault, ranks that were to join by then have come: a schedule counts on them.

        One step earlier all ranks wait for a fresh one, so that the boundary in between lets it in.
        """
        if self.step + 1 not in self._due or self._first_fresh is None:
            return
        wanted = self._first_fresh + sum(step <= self.step for step in self._joins)
        began = time.monotonic()
        for rank in range(self._first_fresh, wanted):
            while process_of(self._folder, rank) is None and time.monotonic() - began < _ARRIVAL_S:
                time.sleep(_LOOK_S)
        if time.monotonic() - began > _LOOK_S:
            time.sleep(_HELLO_S)
            self._waited(time.monotonic() - began, self.step)
