"""What a drill found: one run held against the other, and the faults against what they left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainsys.config import RunConfig
from trainsys.elastic.faults import NEMESES, FaultEvent
from trainsys.elastic.faults.driver import BY_THE_CLOCK
from trainsys.elastic.faults.event import IN_A_CHANGE
from trainsys.elastic.faults.notes import nothing_there, read_notes
from trainsys.elastic.recorder import Recorder
from trainsys.parallel.step import Decision


def compare(config: RunConfig, disturbed: Recorder, undisturbed: Recorder) -> dict[str, Any]:
    """What the faults of one run cost, step by step against the other."""
    ours, theirs = by_step(disturbed.decisions), by_step(undisturbed.decisions)
    steps = config.train.steps
    both = [(ours[s], theirs[s]) for s in range(steps) if s in ours and s in theirs]
    lost, repeated = samples_lost_repeated(disturbed.samples, steps * config.batch.global_size)
    equal = {
        "bit_equal_loss": len(both) == steps and all(a.loss.hex() == b.loss.hex() for a, b in both),
        "bit_equal_grad_norm": len(both) == steps and all(a.grad_norm.hex() == b.grad_norm.hex() for a, b in both),
        "max_abs_loss_diff": max((abs(a.loss - b.loss) for a, b in both), default=0.0),
    }
    return {
        "steps_lost": sum(n - 1 for n in Counter(d.step for d in disturbed.decisions).values()) + steps - len(ours),
        "samples_lost": lost,
        "samples_repeated": repeated,
        **(dict.fromkeys(equal) if config.train.emulate else equal),
    }


def by_step(decisions: Sequence[Decision]) -> dict[int, Decision]:
    """The decision that stands for each step: the last one."""
    return {d.step: d for d in decisions}


def samples_lost_repeated(samples: Sequence[Sequence[int]], total: int) -> tuple[int, int]:
    """How many of the positions 0 … total-1 were never used, and how many uses were repeats or beyond."""
    used = Counter(position for step in samples for position in step)
    lost = sum(position not in used for position in range(total))
    repeated = sum(n - 1 if 0 <= position < total else n for position, n in used.items())
    return lost, repeated


def redone_for_leaving(disturbed: Recorder) -> int:
    """Steps redone because ranks left as they were told to, and for no other reason."""
    told, count = {rank for _, rank in disturbed.drains}, 0
    for change in disturbed.changes:
        if change.before is not None and change.after is not None:
            gone = set(change.before.ranks) - set(change.after.ranks)
            count += change.redo and bool(gone) and gone <= told
    return count


def not_struck(events: Sequence[FaultEvent], disturbed: Recorder) -> list[str]:
    """Planned faults that left no trace, in their own notation.

    A join counts when the rank was there for a change of layout, be it as a spare that the new layout leaves idle, or
    when a step was done while it stood by.
    """
    struck = {(f.kind, f.rank, f.phase) for f in disturbed.faults}
    drained = {rank for _, rank in disturbed.drains}
    noted = {note["event"] for note in read_notes(disturbed.run_dir / "faults") if "event" in note}
    missing = []
    for e in (e for e in events if e.kind != "join"):
        if e.rank < 0 or not NEMESES[e.kind].fatal:
            left_trace = str(e) in noted
        elif e.kind == "drain":
            left_trace = e.rank in drained
        else:
            left_trace = (e.kind, e.rank, e.phase) in struck
        missing += [] if left_trace else [str(e)]
    joins = [e for e in events if e.kind == "join"]
    return missing + [str(e) for e in joins[_arrivals(disturbed.run_dir, disturbed.config.train.steps) :]]


def with_reasons(events: Sequence[str], nothing: Mapping[str, str]) -> str:
    """Faults as told to people; of those that found nothing to strike, why."""
    return ", ".join(f"{event} ({nothing[event]})" if event in nothing else event for event in events)


def idle_victims(events: Sequence[FaultEvent], disturbed: Recorder, missing: Sequence[str]) -> list[str]:
    """Those of `missing` that could not strike, for no fault of the run's.

    Their victim, or one of the pair, had no work in that step: it never came to the phase. They waited for a change,
    and there was none. Or a pair had no open connection, and the record shows why (`_apart`).
    """
    working = sorted((change.step, change.after.ranks) for change in disturbed.changes if change.after is not None)
    found, nothing = [], nothing_there(disturbed.run_dir / "faults")
    for event in (e for e in events if str(e) in missing and (e.rank >= 0 or e.of_manager)):
        if str(event) in nothing and _apart(event, events, missing, working):
            found.append(str(event))
            continue
        if event.phase in IN_A_CHANGE and event.steps and not any(event.awaits(step) for step, _ in working[1:]):
            found.append(str(event))
            continue
        last = max((i for i, (step, _) in enumerate(working) if step <= event.step), default=0)
        named = {event.rank, event.peer} - {-1}
        if any(not named <= set(ranks) for _, ranks in working[last : last + 2]):
            found.append(str(event))
    return found


def _apart(
    event: FaultEvent,
    events: Sequence[FaultEvent],
    missing: Sequence[str],
    working: Sequence[tuple[int, tuple[int, ...]]],
) -> bool:
    """Whether no connection could be open between the two: one of them comes with the change in which it strikes, or a
    fault of the same two has ended it under this layout, and nobody has needed it since."""
    pair = {event.rank, event.peer}
    if -1 in pair:
        return False
    if event.phase in IN_A_CHANGE:
        before = [ranks for step, ranks in working if step < event.step][-1:]
        return any(not pair <= set(ranks) for ranks in before)
    since = max((step for step, _ in working if step <= event.step), default=0)
    struck = (e for e in events if str(e) not in missing and {e.rank, e.peer} == pair)
    return any(since <= e.step < event.step for e in struck)


def _arrivals(run_dir: Path, steps: int) -> int:
    """Ranks that joined after the first layout stood and before the last change, loss or step."""
    lines = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    events = [line["event"] for line in lines]
    first = events.index("changed")
    last = max(i for i, event in enumerate(events) if event in ("changed", "lost"))
    later = [i for i, event in enumerate(events) if event == "joined" and i > first]
    return sum(i < last or lines[i]["step"] < steps - 1 for i in later)


def unplanned(events: Sequence[FaultEvent], disturbed: Recorder, undisturbed: Recorder) -> list[str]:
    """Ranks that were lost though nobody killed them: something is wrong with the run itself."""
    planned = Counter((e.kind, e.rank, e.phase) for e in events if e.kind != "join")
    by_the_clock = {f.rank for f in disturbed.faults if f.phase == BY_THE_CLOCK}
    mine = [f for f in disturbed.faults if not planned[f.kind, f.rank, f.phase] and f.rank not in by_the_clock]
    told = [f"rank {f.rank} at step {f.step}" for f in mine]
    told += [f"manager at step {t.step}" for t in (*disturbed.takeovers, *undisturbed.takeovers) if not t.phase]
    return told + [f"rank {f.rank} at step {f.step} of the undisturbed run" for f in undisturbed.faults]
