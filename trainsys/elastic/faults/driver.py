"""Faults by the clock: a thread beside the ranks that signals them, and asks for fresh ones.

A node of a trace is one rank here: the nodes added at time 0 are the ranks of the config, in order; one that is added
later is a fresh rank.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from time import monotonic

from trainsys.config import FaultsConfig, RunConfig
from trainsys.elastic.faults.event import FaultEvent
from trainsys.elastic.faults.notes import process_of, write_note
from trainsys.elastic.faults.poisson import Stroke, poisson
from trainsys.elastic.faults.trace import read_trace

BY_THE_CLOCK = "any"  # phase: wherever the rank is
_TICK_S = 0.02
_LEFT = "left.txt"


def strokes_of(faults: FaultsConfig) -> Iterable[Stroke]:
    """What ``faults.mtbf_s`` or ``faults.trace`` ask for; empty for neither. Raises ValueError for a bad trace."""
    if faults.trace:
        return read_trace(faults.trace, faults.trace_speed)
    return poisson(faults.mtbf_s, faults.seed) if faults.mtbf_s else ()


def left_strokes(folder: Path) -> list[str]:
    """What a trace had that was not carried out, by a run's folder of notes: the run ended, or nobody was left."""
    path = folder / _LEFT
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def driven(
    strokes: Iterable[Stroke], config: RunConfig, processes: Callable[[], Mapping[int, int]], step: Callable[[], int],
    spawn: Callable[[int], None],
) -> Iterator[None]:  # fmt: skip
    """Strokes are carried out inside. Arguments as of `Driver`."""
    faults = config.faults
    driver = Driver(
        strokes, Path(config.run_dir) / "faults", step, processes, spawn, config.cluster.nodes, faults.rejoin_after,
        faults.grace_s,
    )  # fmt: skip
    driver.start()
    try:
        yield
    finally:
        driver.close()


class Driver:
    """Carries out strokes from the first committed step on, until it is closed.

    The last living rank is never struck.

    Args:
        folder: where notes of faults are; ranks announce themselves there.
        step: how far the run is.
        processes: rank -> process, of those that may be alive.
        spawn: asks for a fresh rank on a node; must not block.
        nodes: of the cluster.
        rejoin_after: steps after a removal without a node at which a fresh rank comes; 0: never.
    """

    def __init__(
        self, strokes: Iterable[Stroke], folder: Path, step: Callable[[], int],
        processes: Callable[[], Mapping[int, int]], spawn: Callable[[int], None], nodes: int, rejoin_after: int = 0,
        grace_s: float = 0.0,
    ) -> None:  # fmt: skip
        self._strokes, self._folder, self._step, self._processes = iter(strokes), folder, step, processes
        self._spawn, self._nodes, self._rejoin_after, self._grace_s = spawn, nodes, rejoin_after, grace_s
        self._over = threading.Event()
        self._due: list[int] = []  # steps at which a fresh rank is wanted
        self._kills: list[tuple[float, int]] = []  # (time, rank) of those with notice
        self._struck = set[int]()
        self._rank_of: dict[str, int] = {}
        self._first = 0  # nodes added at time 0, those that were removed again among them
        self._coming: list[str] = []
        self._count = 0
        self._missed: list[Stroke] = []  # of a trace, that found nobody to strike
        self._thread = threading.Thread(target=self._run, daemon=True, name="faults")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Nothing is struck any more when this returns."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        left = [*self._missed, *takewhile(lambda stroke: bool(stroke.node), self._strokes)]  # at random: no end
        lines = [f"{stroke.event} {stroke.node} at {stroke.time_s:g} s\n" for stroke in left]
        if lines:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / _LEFT).write_text("".join(lines))

    def _run(self) -> None:
        stroke = next(self._strokes, None)
        if stroke is None:
            return
        while not self._over.is_set() and self._step() < 1:
            self._over.wait(_TICK_S)
        began = monotonic()
        while not self._over.is_set():
            now = monotonic()
            while stroke is not None and now - began >= stroke.time_s:
                self._carry_out(stroke)
                stroke = next(self._strokes, None)
            while self._due and self._due[0] <= self._step():
                self._due.pop(0)
                self._fresh()
            for when, rank in [k for k in self._kills if k[0] <= now]:
                self._kills.remove((when, rank))
                self._signal(rank, signal.SIGKILL)
            self._over.wait(_TICK_S)
        if stroke is not None and stroke.node:
            self._missed.append(stroke)

    def _carry_out(self, stroke: Stroke) -> None:
        if stroke.event == "add":
            if stroke.time_s > 0:
                self._coming.append(stroke.node)
                self._fresh()
            else:  # one of the ranks that there are
                self._rank_of[stroke.node] = self._first
                self._first += 1
            return
        living = self._living()
        rank = self._victim(stroke, living)
        if rank is None or len(living) < 2:
            self._missed += [stroke] if stroke.node else []
            return
        self._struck.add(rank)
        kind = "drain" if self._grace_s else "kill"
        step = self._step()
        write_note(self._folder, FaultEvent(kind, step, rank, BY_THE_CLOCK), rank, step, fatal=True)
        self._signal(rank, signal.SIGUSR1 if self._grace_s else signal.SIGKILL)
        if self._grace_s:
            self._kills.append((monotonic() + self._grace_s, rank))
        if self._rejoin_after and not stroke.node:
            self._due.append(step + self._rejoin_after)

    def _victim(self, stroke: Stroke, living: Sequence[int]) -> int | None:
        if not stroke.node:
            return living[int(stroke.draw * len(living))] if living else None
        if stroke.node not in self._rank_of:
            free = [rank for rank in living if rank not in self._rank_of.values()]
            if not free:
                return None
            arrived = stroke.node in self._coming  # the newest are those that were added
            self._rank_of[stroke.node] = free[-1] if arrived else free[0]
        rank = self._rank_of.pop(stroke.node)
        return rank if rank in living else None

    def _living(self) -> list[int]:
        """Ranks that have announced themselves and were not struck."""
        there = [rank for rank in self._processes() if process_of(self._folder, rank) is not None]
        return sorted(set(there) - self._struck)

    def _fresh(self) -> None:
        self._spawn(self._count % self._nodes)
        self._count += 1

    def _signal(self, rank: int, number: signal.Signals) -> None:
        process = self._processes().get(rank)
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process, number)
