"""Files of a run that outlive a full disk: training goes on, what could not be written is kept and tried again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_KEPT = 10_000  # lines; older ones are dropped while the disk stays full

_TAGS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "lr": "lr",
    "tokens_per_s": "throughput/tokens_per_s",
    "step_s": "time/step(s)",
    "memory_gib": "memory/max_rss(GiB)",
    "epoch": "elastic/epoch",
    "ranks": "elastic/ranks",
}


class JsonLines:
    """A file of one JSON object per line; every line is on disk whole or not at all.

    Args:
        append: keep what is there.
        say: told once, in one sentence, when the file cannot be written.
    """

    def __init__(self, path: Path, append: bool, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._stream = path.open("ab" if append else "wb", buffering=0)
        self._pending: list[bytes] = []
        self._complained = False

    def add(self, record: Mapping[str, Any]) -> None:
        self._pending.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        del self._pending[:-_KEPT]
        try:
            while self._pending:
                self._write(self._pending[0])
                self._pending.pop(0)
        except OSError as error:
            if not self._complained:
                self._say(f"{self._path} cannot be written: {error.strerror}; training goes on without it")
            self._complained = True
        else:
            self._complained = False

    def close(self) -> None:
        self._stream.close()

    def _write(self, line: bytes) -> None:
        at = self._stream.seek(0, os.SEEK_END)
        try:
            written = self._stream.write(line)
            if written != len(line):
                self._stream.write(line[written:])  # raises, as the disk is full now
        except OSError:
            self._stream.truncate(at)
            raise


class Board:
    """Metrics for TensorBoard, until its folder cannot be written."""

    def __init__(self, folder: Path, start_step: int, say: Callable[[str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._say = folder, say
        self._writer: Any = SummaryWriter(str(folder), purge_step=start_step)

    def add(self, line: Mapping[str, Any]) -> None:
        """One committed step, given as its line of metrics.jsonl."""
        values = {tag: line[key] for key, tag in _TAGS.items() if line[key] is not None}
        self._attempt(lambda: [self._writer.add_scalar(tag, value, line["step"]) for tag, value in values.items()])

    def close(self) -> None:
        self._attempt(lambda: self._writer.close())

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._writer is None:
            return
        try:
            action()
        except OSError as error:  # its writer thread's, handed on
            self._say(f"{self._folder} cannot be written: {error.strerror}; training goes on without it")
            self._writer = None


def keep_before(path: Path, step: int) -> None:
    """Drop the lines of `step` and later, and torn ones."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    path.write_text("".join(kept))
