"""What happened to the ranks, as records and as plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainsys.elastic.record import Change
from trainsys.space.layout import Layout

_CAUSES = {
    "kill": "SIGKILL",
    "stop": "SIGSTOP",
    "wake": "SIGSTOP, woken later",
    "exit": "its process ended",
    "hang": "no heartbeat",
    "stall": "no answer",
}
MIB = 2**20


@dataclass
class FaultRecord:
    """One lost rank. Seconds count from the fault itself where the victim left a note, else from its detection.

    Attributes:
        kind: ``kill``, ``stop`` or ``wake`` as injected, else how it was noticed: ``exit``, ``hang`` or ``stall``.
        phase: what the rank was about to do; empty when it left no note.
        time: of the fault, CLOCK_MONOTONIC.
        recover_s: until the step in flight was committed by the remaining ranks; None while that is under way.
    """

    kind: str
    rank: int
    phase: str
    step: int
    time: float
    detect_s: float
    recover_s: float | None = None
    bytes_moved: int = 0

    def as_dict(self) -> dict[str, object]:
        keys = ("kind", "rank", "phase", "step", "detect_s", "recover_s", "bytes_moved")
        return {key: getattr(self, key) for key in keys}


@dataclass
class Takeover:
    """A manager that was lost, and replaced. Attributes as of a `FaultRecord`."""

    kind: str
    phase: str
    step: int
    time: float
    detect_s: float
    recover_s: float | None = None

    def as_dict(self) -> dict[str, object]:
        about = {key: getattr(self, key) for key in ("kind", "phase", "step", "detect_s", "recover_s")}
        return {"rank": "manager", **about}


def tell_takeover(takeover: Takeover, step: int) -> str:
    """``manager lost at step 12 in tell (SIGKILL); another took over, step 12 done 0.21 s after``."""
    where = f" in {takeover.phase}" if takeover.phase else ""
    cause = _CAUSES.get(takeover.kind, takeover.kind)
    return (
        f"manager lost at step {takeover.step}{where} ({cause}); another took over, "
        f"step {step} done {takeover.recover_s:.2f} s after"
    )


def tell_loss(fault: FaultRecord, change: Change | None, step: int | None, again: bool = False) -> str:
    """``rank 2 lost at step 41 in backward (SIGKILL); dp 2→1 at stage 1; …; step 41 redone 0.31 s after the kill``.

    Args:
        change: the change of membership that answered it; None when the rank held no work.
        step: the first step committed afterwards; None when none was.
        again: the change has been told already, for another rank.
    """
    parts = [tell_end(fault)]
    if change is None:
        return parts[0] + "; it was a spare, nothing changes"
    parts += _about(change, again)
    if step is not None and fault.recover_s is not None:
        since = {"kill": "the kill", "stop": "the stop", "wake": "the stop"}.get(fault.kind, "its detection")
        parts.append(f"step {step} {'redone' if step == fault.step else 'done'} {fault.recover_s:.2f} s after {since}")
    return "; ".join(parts)


def tell_lost(ranks: Sequence[int]) -> str:
    """``rank 2 lost``, ``ranks 2, 3 lost``."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))} lost"


def tell_end(fault: FaultRecord) -> str:
    """``rank 2 lost at step 41 in backward (SIGKILL)``."""
    where = f" in {fault.phase}" if fault.phase not in ("", "any") else ""
    return f"rank {fault.rank} lost at step {fault.step}{where} ({_CAUSES.get(fault.kind, fault.kind)})"


def tell_join(ranks: list[int], change: Change, again: bool = False) -> str:
    """``rank 4 works from step 51 on; dp 1→2 at stage 1; 1.5 MiB moved in 0.11 s``."""
    names = ", ".join(map(str, ranks))
    who = f"rank {names} works" if len(ranks) == 1 else f"ranks {names} work"
    return "; ".join([f"{who} from step {change.step} on", *_about(change, again)])


def tell_leaving(rank: int, step: int, change: Change | None, again: bool = False) -> str:
    """``rank 2 left before step 12 as it was told to; dp 2→1 at stage 1; …; no step redone``."""
    parts = [f"rank {rank} left before step {step} as it was told to"]
    if change is None:
        return parts[0] + "; it was a spare, nothing changes"
    redone = "the step under way is redone" if change.redo else "no step redone"
    return "; ".join([*parts, *_about(change, again), redone])


def tell_shape(before: Layout | None, after: Layout | None) -> str:
    """How the layout changed; where every stage kept its layers, stage by stage: ``dp 2→1 at stage 1``."""
    assert after is not None
    if before is None:
        return f"layout {after}"
    if [s.spans for s in before.stages] != [s.spans for s in after.stages] or before.tp != after.tp:
        return f"{_with_layers(before, after)} → {_with_layers(after, before)}"
    moves = [
        f"dp {old}→{new} at stage {stage}"
        for stage, (old, new) in enumerate(zip(before.replicas, after.replicas, strict=True))
        if old != new
    ]
    moves += [f"cp {before.cp}→{after.cp}"] if before.cp != after.cp else []
    moves += [f"ep {before.ep}→{after.ep}"] if before.ep != after.ep else []
    return ", ".join(moves) or f"the layout stays {after}"


def tell_fewer(after: Layout, tolerate: int) -> str:
    """``tolerates 1 further loss at once, elastic.tolerate=2 needs 3 ranks``."""
    count = after.tolerates
    losses = f"{count or 'no'} further loss{'es' * (count > 1)}"
    return f"{after} tolerates {losses} at once, elastic.tolerate={tolerate} needs {tolerate + 1} ranks"


def _with_layers(layout: Layout, other: Layout) -> str:
    """The layout, and the layers of each stage where it differs from `other` in them alone."""
    if layout.pp != other.pp:
        return str(layout)
    return f"{layout} ({'+'.join(map(str, layout.layers(layout.stages[-1].spans[-1][1] - 1)))} layers)"


def _about(change: Change, again: bool) -> list[str]:
    """What a change made of the layout and what it cost, once."""
    if again:
        return ["in the same change"]
    moved = f"{change.bytes_moved / MIB:.1f} MiB moved in {change.transfer_s:.2f} s"
    return [tell_shape(change.before, change.after), moved]
