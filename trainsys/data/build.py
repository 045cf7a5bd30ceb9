"""From the `data:` section of a config to a token source; tokenised text is cached."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from trainsys.config import DataConfig
from trainsys.data.cache import cached
from trainsys.data.source import TokenSource
from trainsys.data.text import documents
from trainsys.data.tokenizer import BytesTokenizer, FileTokenizer, Tokenizer, train_bpe
from trainsys.data.tokens import TokenFile, id_dtype

FORMAT = 1  # of the cache; raise it when the same text gives other ids


def build_source(data: DataConfig, vocab_size: int) -> TokenSource:
    """Token source of `data`, whose ids are all below `vocab_size` (the model's).

    A .bin file is read as it is. Text is tokenised once per content, tokenizer and vocabulary into ``data.cache_dir``;
    several processes may do so at the same time.

    Raises:
        ValueError: one line naming the file or the key at fault.
    """
    path = Path(data.path).expanduser()
    if path.suffix == ".bin":
        return TokenFile(path, vocab_size)
    key = f"{_digest(_texts(data))}-{vocab_size}"
    tokenizer, kind = _tokenizer(data, vocab_size, key)
    width = np.dtype(id_dtype(tokenizer.vocab_size))
    file = Path(data.cache_dir).expanduser() / f"{key}-{kind}.{width.name}.bin"

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            for ids in tokenizer.encode(_texts(data)):
                stream.write(ids.astype(width.newbyteorder("<")).tobytes())

    return TokenFile(cached(file, write), vocab_size)


def _texts(data: DataConfig) -> Iterator[str]:
    return documents(data.path, data.max_bytes)


def _tokenizer(data: DataConfig, vocab_size: int, key: str) -> tuple[Tokenizer, str]:
    """The tokenizer that ``data.tokenizer`` names, and a word for it in file names."""
    if data.tokenizer == "bytes":
        return BytesTokenizer(), "bytes"
    if data.tokenizer == "bpe":
        file = Path(data.cache_dir).expanduser() / f"{key}-bpe.json"
        return FileTokenizer(cached(file, lambda temporary: train_bpe(_texts(data), vocab_size, temporary))), "bpe"
    file = Path(data.tokenizer).expanduser()
    tokenizer = FileTokenizer(file)
    return tokenizer, blake2b(file.read_bytes(), digest_size=8).hexdigest()


def _digest(texts: Iterator[str]) -> str:
    """Hash of the documents and of where each ends."""
    state = blake2b(f"trainsys data {FORMAT}".encode(), digest_size=8)
    for text in texts:
        encoded = text.encode()
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    return state.hexdigest()
