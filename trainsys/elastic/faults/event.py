"""One planned fault, as data: it prints as it is written in a schedule."""

from __future__ import annotations

from dataclasses import dataclass

STEP_PHASES = ("forward", "send", "backward", "reduce", "snapshot", "optimizer")
CHANGE_PHASES = ("plan", "connect", "transfer", "verify", "commit")  # inside a transition
PHASES = STEP_PHASES + CHANGE_PHASES
MANAGER_STEP_PHASES = ("collect", "tell")  # of its decisions; see `elastic.strikes`
MANAGER_CHANGE_PHASES = ("open", "switch", "call")
MANAGER_PHASES = MANAGER_STEP_PHASES + MANAGER_CHANGE_PHASES
IN_A_CHANGE = CHANGE_PHASES + MANAGER_CHANGE_PHASES
MANAGER = -1  # in the place of a rank


@dataclass(frozen=True)
class FaultEvent:
    """What shall befall whom, and when; `kind` is a name of `faults.registry.NEMESES`.

    A phase of a transition (plan … commit) hits the first transition at or after `step`; a transfer by portions in its
    middle, when half of the source is released.

    Attributes:
        rank: of the victim; -1: no rank in particular, or of a kill or stop: the manager.
        peer: the other end of a connection; -1: none.
        factor: by which the rank computes slower.
        steps: for how many steps it lasts, or in a phase of a change, how many it waits for one; 0: to the end.
    """

    kind: str
    step: int
    rank: int = -1
    phase: str = "forward"
    peer: int = -1
    factor: int = 0
    steps: int = 0

    def awaits(self, step: int) -> bool:
        """Whether a change at `step` is one that it waits for."""
        return self.step <= step and not 0 < self.steps <= step - self.step

    @property
    def of_manager(self) -> bool:
        """Whether it befalls the manager."""
        return self.rank == MANAGER and self.kind in ("kill", "stop")

    def __str__(self) -> str:
        pair = f"{self.rank}+{self.peer}" if self.peer >= 0 else str(self.rank)
        who = "manager" if self.of_manager else pair if self.rank >= 0 else ""
        if not who:
            return f"{self.kind}@{self.step}"
        if self.factor:
            return f"{self.kind}@{self.step}:{who}:x{self.factor}" + (f":{self.steps}" if self.steps else "")
        return f"{self.kind}@{self.step}:{who}:{self.phase}" + (f":{self.steps}" if self.steps else "")
