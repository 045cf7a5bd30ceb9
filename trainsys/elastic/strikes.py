"""Faults of the manager itself: it is killed or frozen in the middle of a decision."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainsys.config import RunConfig
from trainsys.elastic.faults import MANAGER, FaultEvent
from trainsys.elastic.messages import CommitEpoch, Fault, Open, Verdict

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_SAID: dict[type[Any], str] = {Verdict: "tell", Open: "open", CommitEpoch: "switch", Fault: "call"}


class Strikes:
    """Carries out the faults of a manager. One that took over leaves out those that struck before it.

    ``collect``: all proposals are in, and nothing is entered. ``tell``, ``open``, ``switch``, ``call``: a verdict, an
    order, the commit of a layout, a call-off is entered, and told to half of the ranks.
    """

    def __init__(self, config: RunConfig, faults: Sequence[FaultEvent]) -> None:
        self._folder = Path(config.run_dir) / "faults"
        mine = [e for e in faults if e.of_manager]
        self._events = {i: e for i, e in enumerate(mine) if not self._note(i).exists()}

    def after(self, message: Any, step: int) -> None:
        """Half of the ranks have been told."""
        done = step - 1 if isinstance(message, Verdict) else step
        self.at(_SAID.get(type(message), ""), done)

    def at(self, phase: str, step: int) -> None:
        """Strike here if the schedule says so; between steps at the first chance from `event.step` on."""
        for i, event in list(self._events.items()):
            exact = phase in ("collect", "tell")
            if event.phase == phase and (step == event.step if exact else event.awaits(step)):
                del self._events[i]
                self._folder.mkdir(parents=True, exist_ok=True)
                about = {"kind": event.kind, "rank": MANAGER, "phase": phase, "step": step, "time": time.monotonic()}
                self._note(i).write_text(json.dumps({**about, "event": str(event)}))
                os.kill(os.getpid(), _SIGNALS[event.kind])

    def _note(self, i: int) -> Path:
        return self._folder / f"manager-{i}.json"
