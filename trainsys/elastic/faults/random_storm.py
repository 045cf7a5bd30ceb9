"""A storm: random faults of every kind, one episode after the other, the same for a seed.

An episode is one nemesis, or one while a rank that is told to leave, or dies, makes the layout change (a second fault
in the middle of a recovery). Lost ranks are replaced before the next episode, so that a storm can be as long as one
likes; after a rank has joined in nobody's place, the next one lost is not, so that nearly all that live have work.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from trainsys.elastic.faults.event import (
    CHANGE_PHASES,
    MANAGER,
    MANAGER_CHANGE_PHASES,
    MANAGER_STEP_PHASES,
    STEP_PHASES,
    FaultEvent,
)
from trainsys.elastic.faults.registry import NEMESES

_WITHIN_A_CHANGE = ("kill", "stop", "wake", "cut", "oneway", "join")
_MANAGER_SHARE = 0.3  # of the kills and stops, those of the manager
_FACTORS = (5, 50)
LEAST_GAP = 4  # steps of an episode beyond `rejoin_after`


def random_storm(
    seed: int,
    faults: int,
    world_size: int,
    steps: int,
    rejoin_after: int,
    kinds: Sequence[str] = tuple(NEMESES),
    phases: Sequence[str] = STEP_PHASES,
    share: float = 0.35,
    spares: int = 0,
) -> tuple[FaultEvent, ...]:
    """At least `faults` faults (joins that replace the lost are not counted) in `steps` steps.

    Args:
        rejoin_after: steps after a loss at which a fresh rank is started; at least 1.
        kinds: names of `NEMESES`, dealt like cards.
        phases: of the step that occur in every layout.
        world_size: ranks that work when all is well.
        share: of the episodes that can, those that strike while the layout changes because another rank leaves.
        spares: ranks beside them, who work in the place of the lost; the first fresh rank has the number after theirs.

    Raises:
        ValueError: too few ranks or steps.
    """
    gap = steps // (faults + 1)
    if world_size < 4:
        raise ValueError(f"faults.nemeses needs 4 ranks or more, there are {world_size}; raise cluster.ranks_per_node")
    if rejoin_after < 1 or gap < rejoin_after + LEAST_GAP:
        raise ValueError(
            f"faults.kills={faults} with faults.rejoin_after={rejoin_after} do not fit into train.steps={steps}; set "
            f"faults.rejoin_after to 1 or more and train.steps={(faults + 1) * (max(1, rejoin_after) + LEAST_GAP)}"
        )
    rng = random.Random(f"storm/{seed}")
    storm = _Storm(rng, world_size, rejoin_after, phases, share, spares)
    deck = _dealt(rng, kinds)
    at = 2
    while storm.faults < faults:
        storm.episode(next(deck), at + rng.randrange(gap - rejoin_after - LEAST_GAP + 1))
        at += gap
    return tuple(sorted(storm.events, key=lambda e: e.step))


def _dealt(rng: random.Random, cards: Sequence[str]) -> Iterator[str]:
    """All cards, shuffled, again and again."""
    while True:
        yield from rng.sample(list(cards), len(cards))


class _Storm:
    def __init__(
        self, rng: random.Random, world_size: int, rejoin_after: int, phases: Sequence[str], share: float, spares: int
    ) -> None:
        self._rng, self._rejoin_after, self._share = rng, rejoin_after, share
        self._world_size, self._spares = world_size, spares
        self._living = list(range(world_size))  # and at work
        self._coming = list(range(world_size, world_size + spares))  # who stand by or will be there
        self._next = world_size + spares
        self._phases, self._changes = _dealt(rng, phases), _dealt(rng, CHANGE_PHASES)
        self.events: list[FaultEvent] = []
        self.faults = 0

    def episode(self, kind: str, step: int) -> None:
        """One nemesis at `step`, and those who replace its victims."""
        working = max(self._world_size, len(self._living) + len(self._coming) - self._spares)  # see `Selection`
        vacant = working - len(self._living)
        self._living += self._coming[:vacant]
        self._coming = self._coming[vacant:]
        within = kind in _WITHIN_A_CHANGE and self._rng.random() < self._share
        leaves, at = self._victim() if within else MANAGER, len(self.events)
        if within:
            self._add(FaultEvent("drain", step, leaves))
        phase = next(self._changes) if within else next(self._phases)
        waits = LEAST_GAP if within else 0  # who drains may have no work: then there is no change
        nemesis = NEMESES[kind]
        if kind == "join":
            self._add(FaultEvent("join", step))
            self._comes()
        elif nemesis.who == "pair":
            rank, peer = self._rng.sample(self._living, 2)
            self._add(FaultEvent(kind, step, rank, phase, peer, steps=waits))
        elif nemesis.tail == "scale":
            factor = self._rng.choice(_FACTORS)
            self._add(FaultEvent(kind, step, self._rng.choice(self._living), factor=factor, steps=2))
        elif nemesis.who == "":
            self._add(FaultEvent(kind, step))
        elif nemesis.of_manager and self._rng.random() < _MANAGER_SHARE:
            phase = self._rng.choice(MANAGER_CHANGE_PHASES if within else MANAGER_STEP_PHASES)
            self._add(FaultEvent(kind, step, MANAGER, phase, steps=waits))
            if phase == "call":  # ranks are called off for one who dies, not for one who leaves as told
                self.events[at] = FaultEvent("kill", step, leaves)
        elif kind == "flip":  # and the machine with the bad memory goes: its copy is nobody's source
            rank = self._victim()
            self._add(FaultEvent("flip", step, rank))
            self._add(FaultEvent("kill", step + 1, rank))
        else:
            rank = self._victim() if nemesis.fatal else self._rng.choice(self._living)
            self._add(FaultEvent(kind, step, rank, phase, steps=waits))

    def _comes(self) -> None:
        """A fresh rank; it is there from the next episode on."""
        self._coming.append(self._next)
        self._next += 1

    def _victim(self) -> int:
        """One that will be gone; soon another one comes."""
        rank = self._rng.choice(self._living)
        self._living.remove(rank)
        return rank

    def _add(self, event: FaultEvent) -> None:
        self.events.append(event)
        self.faults += 1
        living = len(self._living) + len(self._coming)
        if NEMESES[event.kind].fatal and not event.of_manager and living < self._world_size + self._spares:
            self.events.append(FaultEvent("join", event.step + self._rejoin_after))
            self._comes()
