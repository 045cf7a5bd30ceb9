"""The invariants, by name, and the check of a run's folder against all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainsys.elastic.check import bits, bounds, commits, epochs, liveness, ownership, samples, whole
from trainsys.elastic.check.findings import Case, Findings
from trainsys.elastic.check.record import read


@dataclass(frozen=True)
class Invariant:
    """What it says, what must have been looked at for a verdict, and the check."""

    says: str
    decisive: tuple[str, ...]
    check: Callable[[Case, Findings], None]


INVARIANTS = {
    "I0": Invariant(whole.SAYS, whole.DECISIVE, whole.check),
    "I1": Invariant(commits.SAYS, commits.DECISIVE, commits.check),
    "I2": Invariant(samples.SAYS, samples.DECISIVE, samples.check),
    "I3": Invariant(bits.SAYS, bits.DECISIVE, bits.check),
    "I4": Invariant(ownership.SAYS, ownership.DECISIVE, ownership.check),
    "I5": Invariant(epochs.SAYS, epochs.DECISIVE, epochs.check),
    "I6": Invariant(bounds.SAYS, bounds.DECISIVE, bounds.check),
    "I7": Invariant(liveness.SAYS, liveness.DECISIVE, liveness.check),
}


def check_run(run_dir: Path | str, against: Path | str | None = None, floor: float = 0.0) -> dict[str, Findings]:
    """Hold the history of a run against every invariant.

    Args:
        against: folder of the same training without faults, for I3.
        floor: relative difference of losses and gradient norms that passes; 0: they must have the same bits.

    Raises:
        ValueError: there is no history in one of the folders.
    """
    case = Case(read(run_dir), read(against) if against is not None else None, floor)
    return {name: _checked(invariant, case) for name, invariant in INVARIANTS.items()}


def _checked(invariant: Invariant, case: Case) -> Findings:
    found = Findings(invariant.decisive)
    try:
        invariant.check(case, found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:  # whoever wrote it
        found.wrong("history/", f"cannot be judged: {type(error).__name__}: {' '.join(str(error).split())}")
    return found


def verdicts(results: dict[str, Findings]) -> dict[str, bool | None]:
    """Name -> whether it holds; None: not checked."""
    return {name: found.holds for name, found in results.items()}


def as_json(results: dict[str, Findings]) -> dict[str, Any]:
    """Verdicts, counts and violations as plain data."""
    return {
        "invariants": verdicts(results),
        "checked": {name: dict(found.checked) for name, found in results.items()},
        "violations": {
            name: [{"where": v.where, "text": v.text} for v in found.violations]
            for name, found in results.items()
            if found.violations
        },
    }


def sentence(invariants: dict[str, bool | None]) -> str:
    """What `verdicts` says, in one line."""
    groups = {
        word: [name for name, holds in invariants.items() if holds is verdict]
        for word, verdict in (("hold", True), ("violated", False), ("not checked", None))
    }
    return "Invariants: " + "; ".join(f"{', '.join(names)} {word}" for word, names in groups.items() if names) + "."
