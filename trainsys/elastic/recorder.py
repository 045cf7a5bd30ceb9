"""The record of a run: metrics, events and history on disk, and in memory what a drill compares.

config.yaml     the resolved configuration; `trainsys train config.yaml` repeats the run
metrics.jsonl   one line per committed step
history.jsonl   ranks lost and joined, changes of layout, checkpoints, with times
tensorboard/    the metrics for TensorBoard
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from trainsys.config import RunConfig, save
from trainsys.elastic.analyst.verdict import Finding
from trainsys.elastic.files import Board, JsonLines, keep_before
from trainsys.elastic.messages import Proposal
from trainsys.elastic.progress import Progress, Screen
from trainsys.elastic.record import Change
from trainsys.elastic.story import (
    FaultRecord,
    Takeover,
    tell_end,
    tell_fewer,
    tell_join,
    tell_leaving,
    tell_loss,
    tell_lost,
    tell_takeover,
)
from trainsys.parallel.step import Decision
from trainsys.schedule.compare import Comparison
from trainsys.schedule.simulate import Event
from trainsys.space.layout import Layout

GIB = 2**30


@dataclass
class _Pending:
    fault: FaultRecord
    working: bool  # it was part of the layout
    change: Change | None = None
    change_done: float = 0.0


class Recorder:
    """Observer of one run; writes `run_dir` as it goes. Close it at the end.

    A run that resumes appends: lines of steps that will be done again are dropped first.

    Args:
        console: where progress is shown; None shows nothing.
        start_step: optimizer steps already in the checkpoint that is resumed.

    Attributes:
        decisions: of every committed step, in order.
        samples: per committed step, the global positions of the sequences that it used.
        step_s: per committed step, seconds since the step (or the change of layout) before.
        layout_names: per committed step, the layout it was done in.
        faults, changes, joins: in order; joins are (step, rank).
        traces: step -> rank -> events of the traced steps; `layouts` has the layout of each.
    """

    def __init__(
        self, config: RunConfig, run_dir: Path | str, console: Screen | None = None, start_step: int = 0
    ) -> None:
        self.config, self.run_dir = config, Path(run_dir)
        self.decisions: list[Decision] = []
        self.samples: list[tuple[int, ...]] = []
        self.step_s: list[float] = []
        self.layout_names: list[str] = []
        self.faults: list[FaultRecord] = []
        self.changes: list[Change] = []
        self.joins: list[tuple[int, int]] = []
        self.drains: list[tuple[int, int]] = []
        self.takeovers: list[Takeover] = []
        self.findings: list[tuple[int, Finding]] = []
        self.saves: list[tuple[int, str, str]] = []
        self.traces: dict[int, dict[int, tuple[Event, ...]]] = {}
        self.layouts: dict[int, Layout] = {}
        self._claimed = set[str]()  # notes of faults of managers, by name
        self._pending: list[_Pending] = []
        self._standing_by: list[int] = []
        self._arrived: list[tuple[list[int], Change]] = []  # told after the losses of the same change
        self._told = -1  # epoch of the change that was told last
        self._working: set[int] = set()
        self._step = start_step
        self._began = self._last = time.monotonic()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.run_dir / "faults", ignore_errors=True)  # notes of an earlier life; ranks count from 0 again
        save(config, self.run_dir / "config.yaml")
        self._progress = Progress(console, start_step, config.train.steps, config.train.log_every)
        say = self._progress.say
        keep_before(self.run_dir / "metrics.jsonl", start_step)
        self._metrics = JsonLines(self.run_dir / "metrics.jsonl", True, say)
        self._board = Board(self.run_dir / "tensorboard", start_step, say)
        self._history = JsonLines(self.run_dir / "history.jsonl", start_step > 0, say)
        self._note("start", step=start_step)

    @property
    def next_step(self) -> int:
        """The first step that is not committed."""
        return self._step

    @property
    def standing_by(self) -> tuple[int, ...]:
        """Ranks that have joined and have no work."""
        return tuple(self._standing_by)

    # -- the manager tells ---------------------------------------------------------------------------------------

    def joined(self, rank: int, node: int) -> None:
        self._note("joined", rank=rank, node=node, step=self._step)
        self._standing_by.append(rank)

    def never_joined(self, rank: int, why: str) -> None:
        self._progress.say(f"rank {rank} {why}")
        self._note("never_joined", rank=rank, why=why, step=self._step)

    def lost(self, rank: int, cause: str, step: int) -> None:
        now = time.monotonic()
        fault = self._fault(rank, cause, step, now)
        self.faults.append(fault)
        if not self._pending:
            self._tell_arrivals()  # of an earlier change
        self._arrived = [(ranks, change) for ranks, change in self._arrived if rank not in ranks]
        pending = _Pending(fault, rank in self._working)
        if pending.working:
            self._pending.append(pending)
        else:
            fault.recover_s = 0.0
            self._progress.say(tell_loss(fault, None, None))
        self._standing_by = [r for r in self._standing_by if r != rank]
        self._note("lost", **fault.as_dict(), cause=cause)

    def left(self, rank: int, step: int) -> None:
        change = self.changes[-1]
        worked = change.before is not None and rank in change.before.ranks
        self.drains.append((step, rank))
        self.say(tell_leaving(rank, step, change, self._again(change)) if worked else tell_leaving(rank, step, None))
        self._standing_by = [r for r in self._standing_by if r != rank]
        self._note("left", rank=rank, step=step)

    def changed(self, change: Change) -> None:
        change = self._with_losses(change)
        assert change.after is not None
        self._last = time.monotonic()
        before = next((c.parallel for c in reversed(self.changes) if c.parallel is not None), None)
        self.changes.append(change)
        if before is not None and change.parallel is not None and before.schedule != change.parallel.schedule:
            name, now = before.schedule, change.parallel.schedule
            self.say(f"parallel.schedule={name} does not suit {change.after}: {now} from here on")
        if change.before is not None and change.after.tolerates < change.before.tolerates:
            self.say(tell_fewer(change.after, self.config.elastic.tolerate))
        self._working = set(change.after.ranks)
        fresh = [r for r in self._standing_by if r in self._working]
        self._standing_by = [r for r in self._standing_by if r not in self._working]
        if change.before is not None:
            self.joins += [(change.step, r) for r in fresh]
            if fresh:
                self._arrived.append((fresh, change))
        for pending in self._pending:
            pending.change, pending.change_done = _joined(pending.change, change), self._last
            pending.fault.bytes_moved = pending.change.bytes_moved
        self._note(
            "changed", epoch=change.epoch, step=change.step, reason=change.reason, layout=str(change.after),
            ranks=list(change.after.ranks), bytes_moved=change.bytes_moved, transfer_s=change.transfer_s,
            change_s=self._last - change.began, decide_s=change.decide_s,
        )  # fmt: skip

    def committed(self, decision: Decision, proposals: Mapping[int, Proposal], epoch: int, layout: Layout) -> None:
        now = time.monotonic()
        step_s, self._last = now - self._last, now
        by_microbatch = {mb: p for proposal in proposals.values() for mb, p in proposal.report.samples.items()}
        self.decisions.append(decision)
        self.samples.append(tuple(p for mb in sorted(by_microbatch) for p in by_microbatch[mb]))
        self.step_s.append(step_s)
        self.layout_names.append(str(layout))
        self._step = decision.step + 1
        traced = {rank: p.events for rank, p in proposals.items() if p.events}
        if traced:
            self.traces[decision.step], self.layouts[decision.step] = traced, layout
        chosen = next((p.report.snapshot for p in proposals.values() if p.report.snapshot), "")
        if chosen:
            self.say(f"snapshots of {layout} by {chosen}")
            self._note("snapshot", step=decision.step, layout=str(layout), chosen=chosen)
        self._recovered(decision.step, now)
        self._write(decision, step_s, epoch, layout, max(p.peak_bytes for p in proposals.values()) / GIB)

    def found(self, finding: Finding, step: int) -> None:
        self.findings.append((step, finding))
        self.say(str(finding))
        self._note("found", step=step, **finding.as_dict())

    def saved(self, step: int, path: str, error: str) -> None:
        self.saves.append((step, path, error))
        if error:
            self._progress.say(error)
        self._note("saved", step=step, path=path, error=error, beside=self.config.checkpoint.beside)

    def manager_lost(self, cause: str, step: int, heard: float) -> None:
        note = self._injected_into_a_manager()
        at = note["time"] if note else heard
        kind, phase = (note["kind"], note["phase"]) if note else (cause, "")
        step = note["step"] if note else step
        self.takeovers.append(Takeover(kind, phase, step, at, time.monotonic() - at))
        self._note("manager_lost", **self.takeovers[-1].as_dict())

    def say(self, line: str) -> None:
        """One line on the screen."""
        self._progress.say(line)

    def compared(self, comparison: Comparison) -> None:
        """The predicted step against a measured one."""
        self._note("compared", **asdict(comparison))

    def close(self) -> None:
        """Flush and close every file; faults that no step followed are told now."""
        for pending in self._pending:
            self._tell(pending, None, pending.change_done)
        self._pending = []
        self._tell_arrivals()
        self._note("end", step=self._step)
        self._metrics.close()
        self._history.close()
        self._board.close()
        self._progress.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what follows --------------------------------------------------------------------------------------------

    def _fault(self, rank: int, cause: str, step: int, now: float) -> FaultRecord:
        note = self._injected(str(rank))
        if note is None:
            return FaultRecord(cause, rank, "", step, now, 0.0)
        return FaultRecord(note["kind"], rank, note["phase"], note["step"], note["time"], now - note["time"])

    def _with_losses(self, change: Change) -> Change:
        """`change`, its reason the ranks lost in it where it is an error by which others noticed first."""
        lost = sorted(p.fault.rank for p in self._pending if p.change is None)
        noticed = change.reason.startswith(("group ", "generation ", "rank ", "another manager"))
        if not (lost and noticed):
            return change
        replaced = any(takeover.recover_s is None for takeover in self.takeovers)
        return replace(change, reason="another manager took over, " * replaced + tell_lost(lost))

    def _injected(self, name: str) -> dict[str, Any] | None:
        """The note that an injected fault leaves."""
        try:
            note: dict[str, Any] = json.loads((self.run_dir / "faults" / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
        return note

    def _injected_into_a_manager(self) -> dict[str, Any] | None:
        """The oldest note that no loss of a manager has claimed; their numbers do not tell the order."""
        names = {path.stem for path in (self.run_dir / "faults").glob("manager-*.json")} - self._claimed
        found = [(note["time"], name, note) for name in names if (note := self._injected(name)) is not None]
        if not found:
            return None
        _, name, note = min(found, key=lambda entry: entry[:2])
        self._claimed.add(name)
        return note

    def _recovered(self, step: int, now: float) -> None:
        for takeover in self.takeovers:
            if takeover.recover_s is None:
                takeover.recover_s = now - takeover.time
                self._progress.say(tell_takeover(takeover, step))
                self._note("recovered", **takeover.as_dict())
        done = [p for p in self._pending if p.change is not None]
        self._pending = [p for p in self._pending if p.change is None]
        for pending in done:
            self._tell(pending, step, now)
        self._tell_arrivals()

    def _tell(self, pending: _Pending, step: int | None, now: float) -> None:
        if pending.change is not None:
            pending.fault.recover_s = now - pending.fault.time
            self._progress.say(tell_loss(pending.fault, pending.change, step, self._again(pending.change)))
            self._note("recovered", **pending.fault.as_dict())
        else:
            self._progress.say(tell_end(pending.fault))

    def _tell_arrivals(self) -> None:
        for ranks, change in self._arrived:
            self._progress.say(tell_join(ranks, change, self._again(change)))
        self._arrived = []

    def _again(self, change: Change) -> bool:
        """Whether the change has been told already, for another rank."""
        again, self._told = change.epoch == self._told, change.epoch
        return again

    def _write(self, decision: Decision, step_s: float, epoch: int, layout: Layout, memory_gib: float) -> None:
        tokens = self.config.batch.tokens
        line: dict[str, Any] = {
            "step": decision.step,
            "loss": decision.loss if isfinite(decision.loss) else None,
            "loss_hex": decision.loss.hex(),
            "grad_norm": decision.grad_norm if isfinite(decision.grad_norm) else None,
            "grad_norm_hex": decision.grad_norm.hex(),
            "lr": decision.lr,
            "tokens_per_s": tokens / step_s,
            "step_s": step_s,
            "epoch": epoch,
            "layout": str(layout),
            "ranks": len(layout.ranks),
            "memory_gib": memory_gib,
            "skipped": decision.skipped,
        }
        if self.config.train.emulate:
            line |= {"loss": None, "loss_hex": None, "grad_norm": None, "grad_norm_hex": None, "emulated": True}
        self._metrics.add(line)
        self._board.add(line)
        if decision.skipped:
            self._progress.say(f"step {decision.step} skipped: its gradient was not finite")
        self._progress.step(line)

    def _note(self, event: str, **fields: Any) -> None:
        line = {"event": event, "t_s": round(time.monotonic() - self._began, 4), "unix_s": time.time(), **fields}
        self._history.add(line)


def _joined(first: Change | None, then: Change) -> Change:
    """Two changes with no step in between, told as one."""
    if first is None:
        return then
    moved, seconds = first.bytes_moved + then.bytes_moved, first.transfer_s + then.transfer_s
    return replace(then, before=first.before, bytes_moved=moved, transfer_s=seconds)
