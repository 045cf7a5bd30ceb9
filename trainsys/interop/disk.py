"""Disks: their errors in words, and writes that last."""

from __future__ import annotations

import errno
import os
from pathlib import Path

FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file grew over this process's limit, ulimit -f",
}


def sync(path: Path) -> None:
    """Make a file's bytes durable, or the renames in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
