"""Several files written together: all of them, or none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def write_all(files: Sequence[tuple[str, Path, bytes]]) -> None:
    """Write each content beside its place, then move all into place.

    Args:
        files: (the flag that named it, where to, what).

    Raises:
        ValueError: for a place that cannot be written; none of them has changed then.
    """
    drafts: list[tuple[Path, Path]] = []
    try:
        for flag, path, content in files:
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    raise IsADirectoryError(21, "Is a directory")
                drafts.append((draft, path))
                draft.write_bytes(content)
            except OSError as error:
                raise ValueError(f"{flag} {path} cannot be written: {error.strerror}") from None
        for draft, path in drafts:
            draft.replace(path)
    finally:
        for draft, _ in drafts:
            draft.unlink(missing_ok=True)
