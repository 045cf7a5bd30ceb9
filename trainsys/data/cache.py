"""Files made once and shared by several processes that start at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cached(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, after ``make(temporary)`` wrote it if it did not exist.

    The file appears whole, by rename. Processes of one machine take turns, so that one of them does the work.

    Raises:
        ValueError: when the folder cannot be written.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                try:
                    make(temporary)
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write the cache file {path}: {error.strerror}; set data.cache_dir") from None
    return path


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Hold an advisory lock; the kernel drops it when its process dies."""
    import fcntl

    with lock.open("w") as handle:
        with suppress(OSError):  # some network file systems have no locks: work twice, the rename still holds
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
