"""Text as a stream of documents: the standard library's sources, .txt and .jsonl files, folders of them."""

from __future__ import annotations

import json
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".txt", ".jsonl")
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write one, UTF-8 cannot


def documents(path: str, max_bytes: int) -> Iterator[str]:
    """Documents under `path`, in a fixed order, until `max_bytes` of UTF-8 text have been read.

    ``"stdlib"`` means the Python sources of the running interpreter's standard library, without its tests; a folder
    means its .txt and .jsonl files at any depth, by name. A .txt file is one document, a .jsonl file one per line.

    Raises:
        ValueError: missing or unknown or empty file, bytes that are not UTF-8, a JSONL line without "text".
    """
    if max_bytes < 1:
        raise ValueError(f"data.max_bytes={max_bytes} must be at least 1")
    found = False
    for text in _cut(path, max_bytes):
        found = True
        yield text
    if not found:
        raise ValueError(f"data.path={path} is empty: no text to train on (data.max_bytes={max_bytes})")


def _cut(path: str, left: int) -> Iterator[str]:
    """Non-empty documents of all files, the last one cut so that they hold `left` bytes together."""
    for file in _files(path):
        for text in _read_jsonl(file) if file.suffix == ".jsonl" else _read_text(file, left, skip_bad=path == "stdlib"):
            encoded = text.encode()
            if len(encoded) > left:
                text = encoded[:left].decode(errors="ignore")  # drops a character cut in half
            if text:
                yield text
            left -= len(encoded)
            if left <= 0:
                return


def _files(path: str) -> list[Path]:
    if path == "stdlib":
        return _stdlib(Path(sysconfig.get_paths()["stdlib"]))
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f'data.path={path} does not exist; give a .txt, .jsonl or .bin file, a folder, or "stdlib"')
    if place.is_dir():
        files = sorted(f for f in place.rglob("*") if f.is_file() and f.suffix in SUFFIXES)
        if not files:
            raise ValueError(f"data.path={path} is a folder without {' or '.join(SUFFIXES)} files")
        return files
    if place.suffix not in SUFFIXES:
        raise ValueError(f"data.path={path} ends in {place.suffix!r}; known: {', '.join(SUFFIXES)}, .bin, or a folder")
    return [place]


def _stdlib(root: Path) -> list[Path]:
    """Python files under `root` by name; installed packages and tests are not entered."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=str)


def _read_text(file: Path, limit: int, skip_bad: bool) -> Iterator[str]:
    """The first `limit` bytes of `file`, one document; `skip_bad` passes over files in other encodings."""
    with file.open("rb") as stream:
        raw = stream.read(limit + 4)  # holds the character at the limit whole
    try:
        yield raw.decode()
    except UnicodeDecodeError as error:
        if error.start >= limit:
            yield raw[: error.start].decode()
        elif not skip_bad:
            raise _not_utf8(file, error.start, raw[error.start]) from None


def _read_jsonl(file: Path) -> Iterator[str]:
    offset = 0
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                record = json.loads(raw.decode()) if raw.strip() else None
            except UnicodeDecodeError as error:
                raise _not_utf8(file, offset + error.start, raw[error.start]) from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{file} line {number} is not JSON: {error.msg} at column {error.colno}") from None
            offset += len(raw)
            if not raw.strip():
                continue
            text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise ValueError(f'{file} line {number} has no string field "text"')
            if _SURROGATE.search(text):
                raise ValueError(f"{file} line {number} has half of a surrogate pair, which is no character")
            yield text


def _not_utf8(file: Path, offset: int, byte: int) -> ValueError:
    return ValueError(f"{file} is not UTF-8: byte 0x{byte:02x} at offset {offset}; convert it to UTF-8")
