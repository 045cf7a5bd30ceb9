"""Convert a checkpoint: file by file, resumable, checksummed; the destination appears when it is whole.

Files go to ``DST.partial``. Each finished one is noted with its checksum in ``DST.partial.journal``, so a conversion
that was killed goes on with the next file. What is in memory is what a target holds of one piece of one file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from trainsys.interop.disk import FULL, sync
from trainsys.interop.formats import Source, Target, Written
from trainsys.interop.sums import sums_of, write_sums
from trainsys.space.box import Box
from trainsys.space.tensor import SLOTS, LogicalTensor


@dataclass
class Done:
    """What a conversion did.

    Attributes:
        nbytes: of the files written, those of an earlier attempt included.
        resumed: files that an earlier attempt had finished.
        largest_read: bytes of the largest single read from the source.
    """

    nbytes: int = 0
    files: int = 0
    resumed: int = 0
    largest_read: int = 0


def check_destination(destination: Path, source: Path) -> None:
    """Whether `destination` is free. Raises ValueError."""
    if destination.resolve() == source.resolve():
        raise ValueError(f"SRC and DST are the same folder, {source}; name a new one")
    if destination.exists() or destination.is_symlink():
        raise ValueError(f"{destination} exists already; name a new folder")


def check_slots(source: Source, slots: Sequence[str]) -> None:
    """Whether `source` has what a target needs. Raises ValueError."""
    missing = [slot for slot in slots if slot not in source.slots]
    if missing:
        raise ValueError(f"{source.path} has no {' and no '.join(missing)}; --zero-moments begins with moments of zero")


def convert(
    source: Source, target: Target, destination: Path, options: Mapping[str, Any], advance: Callable[[int, str], None]
) -> Done:
    """Write everything that `target` asks for.

    Args:
        destination: must not exist.
        options: what decides the bytes of the files; an earlier attempt with others is not continued.
        advance: told of bytes written and of the file, for progress.

    Raises:
        ValueError: one line; the destination is untouched, and finished files stay in ``DST.partial``.
    """
    check_destination(destination, source.path)
    if source.path.resolve() in destination.resolve().parents:
        raise ValueError(f"DST {destination} lies inside SRC {source.path}; name a folder beside it")
    check_slots(source, target.slots)
    done, partial = Done(), destination.with_name(f"{destination.name}.partial")
    plan = {**options, "source": _fingerprint(source.path)}
    try:
        with _journal(partial, plan) as (journal, finished):
            _write_shards(source, target, partial, journal, finished, done, advance)
            target.finish(partial, finished)
            _seal(partial, finished)
            partial.rename(destination)
            sync(destination.parent)
    except OSError as error:
        again = f"{partial} keeps what is finished: the same command goes on from there"
        what = FULL.get(error.errno or 0, error.strerror or str(error))
        raise ValueError(f"{destination} could not be written: {what}; {again}") from None
    return done


def _write_shards(
    source: Source,
    target: Target,
    partial: Path,
    journal: TextIO,
    finished: dict[str, Written],
    done: Done,
    advance: Callable[[int, str], None],
) -> None:
    def read(slot: str, tensor: LogicalTensor, box: Box) -> Tensor:
        values = source.read(slot, tensor, box)
        done.largest_read = max(done.largest_read, values.numel() * values.element_size())
        return values

    for shard in target.shards():
        path, known = partial / shard.name, finished.get(shard.name)
        done.files += 1
        if known is not None and path.is_file() and path.stat().st_size == known.nbytes:
            done.resumed += 1
            done.nbytes += known.nbytes
            advance(shard.nbytes, shard.name)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            note = target.write(path, shard, read, _for_file(advance, shard.name))
            sync(path)
        except BaseException:
            path.unlink(missing_ok=True)  # of a full disk, say
            raise
        finished[shard.name] = Written(*sums_of(path), note)
        done.nbytes += finished[shard.name].nbytes
        _line(journal, {"name": shard.name, **asdict(finished[shard.name])})


def _for_file(advance: Callable[[int, str], None], name: str) -> Callable[[int], None]:
    return lambda n: advance(n, name)


def _seal(partial: Path, finished: Mapping[str, Written]) -> None:
    """``SHA256SUMS`` of every file."""
    files = sorted(str(p.relative_to(partial)) for p in partial.rglob("*") if p.is_file())
    sums = {name: finished[name].sha256 if name in finished else sums_of(partial / name)[2] for name in files}
    write_sums(partial, sums)
    for path in partial.rglob("*"):
        if str(path.relative_to(partial)) not in finished:
            sync(path)
    sync(partial)


@contextmanager
def _journal(partial: Path, plan: Mapping[str, Any]) -> Iterator[tuple[TextIO, dict[str, Written]]]:
    """The journal, open and locked, with the files that it says are finished; removed when all is done."""
    path = partial.with_name(f"{partial.name}.journal")
    plan = json.loads(json.dumps(plan))
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+")
    except OSError as error:
        name = str(partial).removesuffix(".partial")
        raise ValueError(f"{name} cannot be made: {error.strerror}; name another folder") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process is writing {partial}; wait for it or name another folder") from None
        stream.seek(0)
        lines = list(_whole_lines(stream.read()))
        if (lines and lines[0] != plan) or (not lines and partial.exists()):
            raise ValueError(
                f"{partial} is left of another conversion; remove it and {path.name}, or name a new folder"
            )
        finished = {line.pop("name"): Written(**line) for line in lines[1:]}
        stream.truncate(0)
        for line in [plan, *({"name": name, **asdict(w)} for name, w in finished.items())]:
            _line(stream, line)
        partial.mkdir(exist_ok=True)
        try:
            yield stream, finished
        finally:
            if not (finished and partial.exists()):  # done, or nothing to go on with
                shutil.rmtree(partial, ignore_errors=True)
                path.unlink()


def _whole_lines(text: str) -> Iterator[Any]:
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):  # the last one may have been cut off
            yield json.loads(line)


def _line(stream: TextIO, value: Any) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()
    os.fsync(stream.fileno())


def _fingerprint(path: Path) -> str:
    """What tells one state of a folder from another: its files' names, sizes and times."""
    stats = [(str(p.relative_to(path)), p.stat()) for p in sorted(path.rglob("*")) if p.is_file()]
    text = json.dumps([str(path.resolve()), [(name, s.st_size, s.st_mtime_ns) for name, s in stats]])
    return hashlib.sha256(text.encode()).hexdigest()


class ZeroMoments:
    """A source with moments of zero in place of its own or of none: training begins anew from its weights."""

    slots: tuple[str, ...] = SLOTS

    def __init__(self, source: Source) -> None:
        self._source = source
        self.path, self.config, self.step, self.manifest = source.path, source.config, source.step, source.manifest

    def check(self, config: Any) -> None:
        """As the source."""
        self._source.check(config)

    def dtype(self, slot: str, tensor: LogicalTensor) -> torch.dtype:
        """As the source's masters."""
        return self._source.dtype("master", tensor)

    def read(self, slot: str, tensor: LogicalTensor, box: Box) -> Tensor:
        """The source's master, or zeros."""
        if slot == "master":
            return self._source.read(slot, tensor, box)
        return torch.zeros(box.shape)
