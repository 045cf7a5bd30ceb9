"""Emulated troubles: ranks that compute slowly or hang, links that bring messages late or not at all, at chosen steps.

They are data, as faults are: a text that parses, or a file of it that may change while ranks run.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from math import inf
from pathlib import Path

_MOST = 1e6  # times, or seconds
_FORM = re.compile(r"^(?:(\d+)>)?(\d+):(hang|\d+(?:\.\d*)?|\.\d+)(?:@(\d+)(-(\d+)?)?)?$")


@dataclass(frozen=True)
class Trouble:
    """One of them, in steps `first` to `last`.

    Attributes:
        rank: who is slow, or receives.
        src: of a link; None: the rank itself is slow.
        much: factor of a rank's computing, or seconds that messages come late; infinite: hangs.
    """

    rank: int
    src: int | None
    much: float
    first: int
    last: float

    def __str__(self) -> str:
        place = f"{self.rank}" if self.src is None else f"{self.src}>{self.rank}"
        steps = f"{self.first}" + ("" if self.last == self.first else f"-{self.last:g}" if self.last < inf else "-")
        return f"{place}:{'hang' if self.much == inf else format(self.much, 'g')}@{steps}"


def parse_troubles(text: str) -> tuple[Trouble, ...]:
    """Parse ``"3:2.0@41-60,2>3:0.02@70-90,5:hang@100"``: without steps always, with one in that one
    alone, ``@70-`` from there on.

    Raises:
        ValueError: naming the item.
    """
    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = _FORM.match(item)
        if match is None:
            raise ValueError(
                f"train.emulate_slow: {item!r} is not RANK:FACTOR[@FIRST[-LAST]], FROM>TO:SECONDS[@…], nor either "
                "with hang"
            )
        src, rank, much, first, open_end, last = match.groups()
        until = int(last or first) if first and (last or not open_end) else inf
        trouble = Trouble(int(rank), int(src) if src else None, inf if much == "hang" else float(much),
                          int(first or 0), until)  # fmt: skip
        if trouble.src is None and trouble.much < 1:
            raise ValueError(f"train.emulate_slow: {item!r} would make a rank faster; set a factor of at least 1")
        if much != "hang" and trouble.much > _MOST:
            raise ValueError(f"train.emulate_slow: {item!r} would not end; write {_MOST:g} or less, or hang")
        if trouble.last < trouble.first:
            raise ValueError(f"train.emulate_slow: {item!r} ends before it begins; write FIRST-LAST")
        if trouble.src == trouble.rank:
            raise ValueError(f"train.emulate_slow: {item!r} names rank {trouble.rank} twice; name two ranks")
        found.append(trouble)
    return tuple(found)


class Troubles:
    """Those of one rank.

    Args:
        text: as `parse_troubles`, or ``file:PATH`` of such a text, which is read again when it has changed.

    Attributes:
        factor: of this rank's computing in this step; infinite: it shall hang.
    """

    def __init__(self, text: str, rank: int) -> None:
        self._rank, self.factor = rank, 1.0
        self._file = Path(text.removeprefix("file:")) if text.startswith("file:") else None
        self._stat = 0
        self._all = parse_troubles("" if self._file else text)
        self._late: dict[int, float] = {}
        self._entered = -1  # what hangs does so once, though the step be done again

    def enter(self, step: int) -> None:
        """A step begins."""
        if self._file is not None:
            self._read(self._file)
        self.factor, self._late = 1.0, {}
        for trouble in self._all:
            again = trouble.much == inf and step <= self._entered
            if trouble.rank != self._rank or not trouble.first <= step <= trouble.last or again:
                continue
            if trouble.src is None:
                self.factor = max(self.factor, trouble.much)
            else:
                self._late[trouble.src] = trouble.much
        self._entered = max(step, self._entered)

    def lag_s(self, src: int) -> float:
        """How late arrives what comes from rank `src`."""
        return self._late.get(src, 0.0)

    def _read(self, path: Path) -> None:
        try:
            changed = os.stat(path).st_mtime_ns
            if changed != self._stat:
                self._all, self._stat = parse_troubles(path.read_text()), changed
        except OSError:
            self._all = ()
        except ValueError as error:  # what was said before still holds
            self._stat = changed
            print(f"rank {self._rank}: {path}: {error}", file=sys.stderr, flush=True)
