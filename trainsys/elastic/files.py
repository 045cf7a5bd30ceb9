"""Files of a run that outlive a full disk: training goes on, what could not be written is kept and tried again."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from io import BytesIO
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


class Records:
    """A file of records; every one is on disk whole or not at all.

    Args:
        append: keep what is there.
        say: told once, in one sentence, when the file cannot be written.
    """

    def __init__(self, path: Path, append: bool, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._stream = path.open("ab" if append else "wb", buffering=0)
        self._pending: list[bytes] = []
        self._complained = False

    def append(self, record: bytes) -> None:
        self._pending.append(record)
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

    def _write(self, record: bytes) -> None:
        at = self._stream.seek(0, os.SEEK_END)
        try:
            written = self._stream.write(record)
            if written != len(record):
                self._stream.write(record[written:])  # raises, as the disk is full now
        except OSError:
            self._stream.truncate(at)
            raise


class JsonLines(Records):
    """One JSON object per line."""

    def add(self, record: Mapping[str, Any]) -> None:
        self.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")


class Board(Records):
    """Metrics for TensorBoard: one event per step. Written here, as its own writer dies in a thread of its own."""

    def __init__(self, folder: Path, start_step: int, say: Callable[[str], None]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{start_step}"
        super().__init__(folder / name, True, say)
        self._event(Event(file_version="brain.Event:2"))
        self._event(Event(session_log=SessionLog(status=SessionLog.START), step=start_step))  # hides later steps

    def add(self, line: Mapping[str, Any]) -> None:
        """One committed step, given as its line of metrics.jsonl."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=line[key]) for key, tag in _TAGS.items() if line[key] is not None]
        self._event(Event(summary=Summary(value=values), step=line["step"]))

    def _event(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        event.wall_time = time.time()
        buffer = BytesIO()
        RecordWriter(buffer).write(event.SerializeToString())
        self.append(buffer.getvalue())


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
    whole = path.with_name(f".{path.name}.new")
    whole.write_text("".join(kept))
    whole.replace(path)
