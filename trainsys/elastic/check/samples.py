"""I2: every sample slot of a committed step is used exactly once, of the same global batch, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from trainsys.elastic.check.findings import Case, Findings
from trainsys.elastic.check.record import Attempt, Line

SAYS = "every sample of a step is used once; batch and gradient scale stay; the loader goes on where it was"
DECISIVE = ("samples",)


def check(case: Case, found: Findings) -> None:
    """Of the commits that stand: what each stage's replicas computed, and where the loader stood."""
    standing = case.record.standing()
    first = case.record.attempts[0].start
    computed = {id(a): _computed(a, found) for a in case.record.attempts}
    for attempt in case.record.attempts:
        _constant(attempt, first, found)
    position = first["start_step"] * first["global_size"]
    for attempt, commit in standing:
        size, step = attempt.start["global_size"], commit["step"]
        wanted = range(step * size, (step + 1) * size)
        told = positions(commit["samples"])
        found.count("steps")
        if told and told[0] != position:
            found.wrong(commit, f"step {step} begins at sample {told[0]}, the loader stood at {position}")
        _once(commit, f"step {step}", told, wanted, found)
        position = wanted.stop
        _stages(attempt, commit, wanted, computed[id(attempt)], found)


def positions(runs: Iterable[tuple[int, int]]) -> list[int]:
    """The numbers of ``[[first, count], …]``."""
    return [p for first, count in runs for p in range(first, first + count)]


def _computed(attempt: Attempt, found: Findings) -> dict[tuple[int, int, int], Line]:
    """(rank, epoch, step) -> the line."""
    lines: dict[tuple[int, int, int], Line] = {}
    for rank, line in attempt.of_ranks("computed"):
        key = rank, line["epoch"], line["step"]
        if key in lines:
            found.wrong(line, f"rank {rank} proposes step {key[2]} a second time in epoch {key[1]}")
        lines.setdefault(key, line)
    return lines


def _stages(
    attempt: Attempt, commit: Line, wanted: range, computed: dict[tuple[int, int, int], Line], found: Findings
) -> None:
    """In each stage the replicas together had every sample once, and within a replica all ranks had the same."""
    epoch, step = commit["epoch"], commit["step"]
    if epoch not in attempt.opened:
        found.wrong(commit, f"step {step} is committed in epoch {epoch}, which was never opened")
        return
    layout = attempt.layout(epoch)
    for s, stage in enumerate(layout.stages):
        used: list[int] = []
        last: Line | None = None
        for number, team in enumerate(stage.teams):
            share: list[int] | None = None
            for rank in team:
                line = computed.get((rank, epoch, step))
                if line is None:
                    found.wrong(commit, f"rank {rank} left nothing of what it computed in step {step}")
                    continue
                mine = positions(line["samples"])
                found.count("samples", len(mine))
                if share is not None and mine != share:
                    found.wrong(line, f"rank {rank} computes other samples of step {step} than its team")
                share, last = mine, line
            if number % layout.cp == 0:
                used += share or []
        if last is not None:
            _once(last, f"stage {s} in step {step}", used, wanted, found)


def _once(place: Line, who: str, used: list[int], wanted: range, found: Findings) -> None:
    times = Counter(used)
    lost = [p for p in wanted if p not in times]
    again = [p for p, n in times.items() if n > 1]
    alien = [p for p in times if p not in wanted]
    for text, group in (("does not use", lost), ("uses more than once", again), ("uses from another step", alien)):
        if group:
            more = f" and {len(group) - 1} more" if len(group) > 1 else ""
            found.wrong(place, f"{who} {text} sample {group[0]}{more}")


def _constant(attempt: Attempt, first: Line, found: Findings) -> None:
    """The global batch, and the tokens that gradients are divided by, are everywhere the same."""
    lines = [attempt.start, *(line for _, line in attempt.of_ranks("switched"))]
    for line in lines:
        for name in ("global_size", "tokens"):
            found.count("batches and scales compared")
            if line[name] != first[name]:
                found.wrong(line, f"{name} is {line[name]}, at the start it was {first[name]}")
