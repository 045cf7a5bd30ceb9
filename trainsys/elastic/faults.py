"""Faults are data: a schedule that prints and parses, random ones from a seed, and the injector inside each rank."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

STEP_PHASES = ("forward", "send", "backward", "reduce", "snapshot", "optimizer")
CHANGE_PHASES = ("plan", "connect", "transfer", "verify", "commit")  # inside a transition
PHASES = STEP_PHASES + CHANGE_PHASES
_FORM = re.compile(r"^(kill|stop|drain)@(\d+):(\d+)(?::([a-z]+))?$|^(join)@(\d+)$")


MANAGER = -1  # in the place of a rank
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "drain": signal.SIGUSR1}


@dataclass(frozen=True)
class FaultEvent:
    """``kill`` (SIGKILL) or ``stop`` (SIGSTOP) of `rank` as it enters `phase` of `step`, or ``drain``: it gets notice
    (SIGUSR1) that its place will be taken away; or a ``join`` at `step`.

    A phase of a transition (plan … commit) hits the first transition at or after `step`; a transfer by portions in its
    middle, when half of the source is released.
    """

    kind: str
    step: int
    rank: int = -1
    phase: str = "forward"

    def __str__(self) -> str:
        return f"join@{self.step}" if self.kind == "join" else f"{self.kind}@{self.step}:{self.rank}:{self.phase}"


def parse_faults(text: str, world_size: int, steps: int) -> tuple[FaultEvent, ...]:
    """Parse ``"kill@17:2:backward,stop@30:0,join@40"``.

    Raises:
        ValueError: naming the item, for a form, rank, phase or step that cannot be.
    """
    events: list[FaultEvent] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = _FORM.match(item)
        if match is None:
            raise ValueError(f"faults.schedule: {item!r} is not kill@STEP:RANK[:PHASE], stop@…, drain@… or join@STEP")
        kind, step, rank, phase, join, at = match.groups()
        event = FaultEvent("join", int(at)) if join else FaultEvent(kind, int(step), int(rank), phase or "forward")
        if event.step >= steps:
            raise ValueError(f"faults.schedule: {item!r} names step {event.step}, but the run has train.steps={steps}")
        if event.phase not in PHASES:
            raise ValueError(f"faults.schedule: {item!r} names no phase; phases are {', '.join(PHASES)}")
        events.append(event)
    events.sort(key=lambda e: e.step)
    _check_ranks(events, world_size)
    return tuple(events)


def _check_ranks(events: Sequence[FaultEvent], world_size: int) -> None:
    """Every victim may exist by then, nobody dies twice, and somebody is left. Raises ValueError."""
    started, struck = world_size, set[int]()
    for event in events:
        if event.kind == "join":
            started += 1
            continue
        if event.rank >= started:
            raise ValueError(f"faults.schedule: {event} names rank {event.rank}, but ranks are 0 to {started - 1} then")
        if event.rank in struck:
            raise ValueError(f"faults.schedule: {event} strikes rank {event.rank} a second time; name another rank")
        struck.add(event.rank)
        if len(struck) == started:
            raise ValueError(f"faults.schedule: {event} leaves none of {started} rank{'s'[: started != 1]}; name fewer")


def random_kills(
    seed: int, kills: int, ranks: Sequence[int], steps: int, rejoin_after: int = 0, phases: Sequence[str] = STEP_PHASES
) -> tuple[FaultEvent, ...]:
    """`kills` kills of distinct ranks, spread evenly over the run, in phases drawn from `phases`; the same for a seed.

    Raises:
        ValueError: when there are not enough ranks or steps.
    """
    if kills >= len(ranks) and not 0 < rejoin_after < steps // (kills + 1):
        raise ValueError(
            f"faults.kills={kills} would leave none of {len(ranks)} rank{'s'[: len(ranks) != 1]}; "
            f"set faults.kills<{len(ranks)}"
        )
    if kills > len(ranks) or 2 * kills >= steps:
        raise ValueError(f"faults.kills={kills} does not fit {len(ranks)} ranks and train.steps={steps}; set it lower")
    rng = random.Random(f"faults/{seed}")
    victims = rng.sample(list(ranks), kills)
    events: list[FaultEvent] = []
    width = steps // (kills + 1)
    for i, victim in enumerate(victims):
        step = 1 + i * width + rng.randrange(max(1, width // 2))
        # after a loss there may be no pipeline any more that sends
        possible = [p for p in phases if p != "send" or not i]
        events.append(FaultEvent("kill", step, victim, rng.choice(possible)))
        if rejoin_after and step + rejoin_after < steps:
            events.append(FaultEvent("join", step + rejoin_after))
    return tuple(sorted(events, key=lambda e: e.step))


class Injector:
    """Carries out this rank's faults; its `at` hangs in every phase of step and transition.

    Just before it strikes it writes ``<folder>/<rank>.json`` with the time (CLOCK_MONOTONIC), so that the time to
    recovery can be counted from the fault itself, and tells `struck` of the fault and the step.
    """

    def __init__(
        self, events: Sequence[FaultEvent], rank: int, folder: Path,
        struck: Callable[[FaultEvent, int], None] = lambda event, step: None,
    ) -> None:  # fmt: skip
        self._events = [e for e in events if e.rank == rank and e.kind != "join"]
        self._rank, self._folder, self._struck = rank, folder, struck
        self.step = 0
        self.microbatches = 1  # of this rank in a step
        self.portions = 1  # of a transition
        self._entered: dict[tuple[int, str], int] = {}

    def at(self, phase: str) -> None:
        """Entering `phase`: strike here if the schedule says so.

        In forward and backward at the second microbatch, in a transfer by portions at the middle one.
        """
        if not self._events:
            return
        count = self._entered[self.step, phase] = self._entered.get((self.step, phase), 0) + 1
        for event in self._events:
            due = self.step >= event.step if event.phase in CHANGE_PHASES else self.step == event.step
            inside = min(2, self.microbatches) if phase in ("forward", "backward") else 1
            inside = self.portions // 2 + 1 if phase == "transfer" else inside
            if due and event.phase == phase and count >= inside:
                self._strike(event)

    def _strike(self, event: FaultEvent) -> None:
        self._events.remove(event)
        self._folder.mkdir(parents=True, exist_ok=True)
        record = {
            "kind": event.kind,
            "rank": self._rank,
            "phase": event.phase,
            "step": self.step,
            "time": time.monotonic(),
        }
        (self._folder / f"{self._rank}.json").write_text(json.dumps(record))
        self._struck(event, self.step)
        os.kill(os.getpid(), SIGNALS[event.kind])
