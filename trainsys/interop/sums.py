"""Checksums of whole files: written beside what we write, verified when a file is first opened."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from trainsys.interop.torch_files import Mapped

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
_BLOCK = 1 << 20
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def sums_of(path: Path) -> tuple[int, int, str]:
    """(bytes, crc32, sha256) of a file, in one pass."""
    size, crc, sha = 0, 0, hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
            sha.update(block)
    return size, crc, sha.hexdigest()


def write_sums(folder: Path, found: Mapping[str, str]) -> None:
    """Note the sha256 of each file, by its path below `folder`."""
    (folder / SUMS).write_text("".join(f"{sha}  {name}\n" for name, sha in sorted(found.items())))


class Sums:
    """The files of a folder, each verified once against what is known of it.

    Args:
        known: size and crc32 by name, from our own manifest; `SHA256SUMS` is read where there is one.
    """

    def __init__(self, folder: Path, known: Mapping[str, tuple[int, int]] | None = None) -> None:
        self.folder, self._known = folder, dict(known or {})
        self._sha: dict[str, str] = {}
        if (folder / SUMS).is_file():
            lines = (folder / SUMS).read_text(errors="replace").splitlines()
            self._sha = {match[2]: match[1] for line in lines if (match := _LINE.fullmatch(line))}
        self._sure: set[Path] = set()
        self._mapped: dict[Path, Mapped] = {}

    def verify(self, path: Path) -> bool:
        """Whether `path` was compared with a checksum; ValueError when it is missing or does not match."""
        name = str(path.relative_to(self.folder))
        if name not in self._known and name not in self._sha:
            return False
        if path not in self._sure:
            try:
                size, crc, sha = sums_of(path)
            except FileNotFoundError:
                raise ValueError(f"{path} is missing") from None
            expected = self._known.get(name, (size, crc))
            if size != expected[0]:
                raise ValueError(f"{path} has {size} of {expected[0]} bytes")
            if crc != expected[1] or sha != self._sha.get(name, sha):
                raise ValueError(f"{path} is damaged: its checksum does not match")
            self._sure.add(path)
        return True

    def mapped(self, path: Path) -> Mapped:
        """`path` verified and mapped, once."""
        if path not in self._mapped:
            self._mapped[path] = Mapped(path, sure=self.verify(path))
        return self._mapped[path]
