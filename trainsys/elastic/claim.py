"""A run's folder belongs to one run at a time, and is either a training run's or a drill's."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from trainsys.config import RunConfig

_LOCK, _DRILL = ".lock", ".drill"


@contextmanager
def claimed(config: RunConfig) -> Iterator[None]:
    """Hold the run's folder, and that of its checkpoints, for as long as this process uses them; made if missing.

    Whoever looks for a checkpoint, renames one or writes a record does so inside.

    Raises:
        ValueError: another process holds one of them.
    """
    with ExitStack() as stack:
        stack.enter_context(_held("run_dir", Path(config.run_dir)))
        if config.checkpoint.dir:
            stack.enter_context(_held("checkpoint.dir", Path(config.checkpoint.dir)))
        yield


@contextmanager
def _held(key: str, folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            raise ValueError(
                f"{key}={folder} is in use by process {stream.read().strip()}; wait for it, or set another {key}"
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def mark_drill(run_dir: Path) -> None:
    """From now on what is in the folder may be cleared by the next drill."""
    (run_dir / _DRILL).touch()


def mark_training(run_dir: Path) -> None:
    """From now on it may not."""
    (run_dir / _DRILL).unlink(missing_ok=True)


def is_drill(run_dir: Path) -> bool:
    return (run_dir / _DRILL).exists()
