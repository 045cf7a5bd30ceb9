"""I4: after every change each coordinate has one owner, its copies are equal, and no bit and no step was lost."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from trainsys.elastic.check.evidence import Evidence, evidence
from trainsys.elastic.check.findings import Case, Findings
from trainsys.elastic.check.record import Attempt, Line
from trainsys.space.tensor import SLOTS

SAYS = "after a change every coordinate is owned once, where the layout says; hashes and step counters agree"
DECISIVE = ("changes", "states hashed")
Row = tuple[int, int, int, int]  # tensor, shard, start, stop


def check(case: Case, found: Findings) -> None:
    """Every committed change, and every other state that was hashed."""
    for attempt in case.record.attempts:
        known: dict[int, tuple[Evidence, dict[str, int]]] = {}  # steps -> the first state seen after them
        for at in evidence(attempt):
            found.count("changes" if at.change else "states hashed")
            gone = [rank for rank in at.expected if rank not in at.lines]
            for rank in gone if at.change else [r for r in gone if r not in attempt.lost]:
                found.wrong(at.place, f"epoch {at.epoch}: there is no census of rank {rank}")
            _owners(at, found)
            _steps(at, found)
            if at.complete:
                _covered(at, found)
                _hashes(at, known, found)
            _agreed(attempt, at, found)


def _rows(line: Line, key: str) -> Iterator[tuple[Row, str]]:
    for tensor, shard, start, stop, mixed in line[key]:
        yield (tensor, shard, start, stop), mixed


def _owners(at: Evidence, found: Findings) -> None:
    """Each rank owns and keeps what the layout gives it, computed here anew."""
    layout, space = at.attempt.layout(at.epoch), at.attempt.space
    for rank, line in at.lines.items():
        mine: list[Row] = []
        others: list[Row] = []
        if rank in layout:
            owned = set(layout.owned(space, rank))
            for p in layout.storage(space, rank):
                stands = p in owned and p.shard == space.tensors[p.tensor].first_copy(layout.tp, p.shard)
                (mine if stands else others).append((p.tensor, p.shard, p.start, p.stop))
        for key, wanted, does in (("owned", mine, "owns"), ("copies", others, "keeps a copy of")):
            there = [row for row, _ in _rows(line, key)]
            found.count("pieces", len(there))
            for row in sorted(set(there) - set(wanted))[:1]:
                found.wrong(line, f"rank {rank} {does} {_name(at, row)}, which the layout gives to another")
            for row in sorted(set(wanted) - set(there))[:1]:
                found.wrong(line, f"rank {rank} should have {_name(at, row)}, and nothing of it is written ({key})")


def _covered(at: Evidence, found: Findings) -> None:
    """The owners' pieces lie end to end; copies are what their owners have."""
    layout, tensors = at.attempt.layout(at.epoch), at.attempt.space.tensors
    owners: dict[tuple[int, int, int], tuple[str, int]] = {}
    for rank, line in at.lines.items():
        for row, mixed in _rows(line, "owned"):
            if row[:3] in owners:
                found.wrong(line, f"rank {rank} owns {_name(at, row)}, and rank {owners[row[:3]][1]} does, too")
            owners[row[:3]] = mixed, rank
    ends: dict[tuple[int, int], int] = {}
    numel: dict[int, int] = {}
    for row in sorted(row for line in at.lines.values() for row, _ in _rows(line, "owned")):
        ordinal, shard, start, stop = row
        if start > ends.get((ordinal, shard), 0):
            found.wrong(at.place, f"epoch {at.epoch}: nobody owns what comes before {_name(at, row)}")
        ends[ordinal, shard] = stop
        numel[ordinal] = numel.get(ordinal, 0) + stop - start
    for ordinal, tensor in enumerate(tensors):
        if numel.get(ordinal, 0) != tensor.numel:
            found.wrong(
                at.place, f"epoch {at.epoch}: {numel.get(ordinal, 0)} of {tensor.numel} elements of {tensor.name} owned"
            )
    for rank, line in at.lines.items():
        for row, mixed in _rows(line, "copies"):
            first = tensors[row[0]].first_copy(layout.tp, row[1])
            owner = owners.get((row[0], first, row[2]))
            found.count("copies")
            if owner is not None and owner[0] != mixed:
                found.wrong(line, f"rank {rank} keeps another {_name(at, row)} than its owner, rank {owner[1]}")


def _hashes(at: Evidence, known: dict[int, tuple[Evidence, dict[str, int]]], found: Findings) -> None:
    """What arrived is what left, and what was there after the same steps before."""
    after = at.sums("after")
    if at.change and not at.attempt.opened[at.epoch]["fresh"]:
        before = at.sums("before")
        for name in (f"{t.name}.{slot}" for t in at.attempt.space.tensors for slot in SLOTS):
            found.count("hashes compared")
            if before.get(name) != after.get(name):
                line = next((line for line in at.lines.values() if name in line["after"]), at.place)
                found.wrong(line, f"{name} of the destination is not that of the source")
    first, same = known.setdefault(at.steps, (at, after))
    if same != after:
        name = next(name for name in chain(same, after) if same.get(name) != after.get(name))
        found.wrong(at.place, f"after {at.steps} steps {name} is another in epoch {at.epoch} than in {first.epoch}")


def _steps(at: Evidence, found: Findings) -> None:
    """Everybody's state has seen the same steps; whoever held a part says how many."""
    alive = at.attempt.opened[at.epoch]["alive"] if at.change else at.expected
    for rank, line in at.lines.items():
        steps = line["steps"]
        found.count("step counters")
        if steps is None and at.change and rank not in alive:
            continue
        if steps != at.steps:
            found.wrong(line, f"the state of rank {rank} has seen {steps} steps, {at.steps} are committed")


def _agreed(attempt: Attempt, at: Evidence, found: Findings) -> None:
    """All ranks went to the layout that the manager meant, and their optimizers count alike."""
    meant = attempt.opened[at.epoch]["fingerprint"]
    for rank in at.expected if at.change else ():
        for line in attempt.ranks.get(rank, ()):
            if line.event == "entered" and line["epoch"] == at.epoch and line["fingerprint"] != meant:
                found.wrong(line, f"rank {rank} enters layout {line['fingerprint']}, meant is {meant}")
            if line.event == "applied" and line["epoch"] == at.epoch:
                found.count("step counters")
                if line["steps"] != line["step"] + 1:
                    found.wrong(line, f"after step {line['step']} the optimizer of rank {rank} counts {line['steps']}")


def _name(at: Evidence, row: Row) -> str:
    tensor, shard, start, stop = row
    return f"{at.attempt.space.tensors[tensor].name} shard {shard} [{start}:{stop}]"
