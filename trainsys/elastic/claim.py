"""A run's folder belongs to one run at a time, and is either a training run's or a drill's."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK, _DRILL = ".lock", ".drill"


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Hold the folder for as long as this process uses it; made if missing.

    Raises:
        ValueError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / _LOCK).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            raise ValueError(
                f"run_dir={run_dir} is in use by process {stream.read().strip()}; wait for it, or set another run_dir"
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
