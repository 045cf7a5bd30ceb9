"""I3: losses, gradient norms and the state have the bits of the undisturbed run, or are within a noise floor of it."""

from __future__ import annotations

from math import fsum, isfinite

from trainsys.elastic.check.evidence import evidence
from trainsys.elastic.check.findings import Case, Findings
from trainsys.elastic.check.record import Attempt, Line, Record

SAYS = "losses, norms and state are those of the undisturbed run"
DECISIVE = ("steps compared", "states compared")


def check(case: Case, found: Findings) -> None:
    """Each loss is the exact sum of its parts; then step by step against the other run."""
    for attempt in case.record.attempts:
        _sums(attempt, found)
    if case.against is None:
        return
    if any(a.start["emulated"] for a in (*case.record.attempts, *case.against.attempts)):
        return  # there are no losses
    theirs = {line["step"]: line for _, line in case.against.standing()}
    for _, line in case.record.standing():
        other = theirs.get(line["step"])
        if other is not None:
            found.count("steps compared")
            for name in ("loss_hex", "grad_norm_hex"):
                _equal(line, other, name, case.floor, found)
    if not case.floor:
        _states(case.record, case.against, found)


def _equal(line: Line, other: Line, name: str, floor: float, found: Findings) -> None:
    ours, theirs = float.fromhex(line[name]), float.fromhex(other[name])
    near = isfinite(ours) and isfinite(theirs) and abs(ours - theirs) <= floor * abs(theirs)
    if line[name] != other[name] and not (floor and near):
        what, within = name.removesuffix("_hex"), f", further than {floor:g}" if floor else ""
        found.wrong(line, f"{what} of step {line['step']} is {ours!r}, undisturbed {theirs!r}{within} ({other.where})")


def _sums(attempt: Attempt, found: Findings) -> None:
    """The committed loss from the ranks' own parts of it."""
    parts: dict[tuple[int, int], dict[str, float]] = {}
    for _, line in attempt.of_ranks("computed"):
        losses = {part: float.fromhex(value) for part, value in line["losses"].items()}
        parts.setdefault((line["epoch"], line["step"]), {}).update(losses)
    for line in attempt.told("committed"):
        losses = parts.get((line["epoch"], line["step"]), {})
        if losses:
            found.count("losses added up")
            total = fsum(losses.values()) if all(map(isfinite, losses.values())) else float("nan")
            if total.hex() != line["loss_hex"]:
                found.wrong(
                    line, f"the loss of step {line['step']} is {float.fromhex(line['loss_hex'])!r}, its parts {total!r}"
                )


def _states(record: Record, against: Record, found: Findings) -> None:
    """Where both runs hashed the whole state after the same step."""
    theirs = {e.steps: e for attempt in against.attempts for e in evidence(attempt) if e.complete}
    for attempt in record.attempts:
        for ours in evidence(attempt):
            other = theirs.get(ours.steps)
            if other is None or not ours.complete:
                continue
            found.count("states compared")
            a, b = ours.sums("after"), other.sums("after")
            differ = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
            if differ:
                more = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
                line = next(line for line in ours.lines.values() if differ[0] in line["after"] or not line["after"])
                found.wrong(line, f"after {ours.steps} steps {differ[0]}{more} differ from the undisturbed run")
