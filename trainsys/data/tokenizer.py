"""Text to token ids: raw bytes, or byte-level BPE through the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

END = "<|endoftext|>"
_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>")  # names of the separator in published tokenizers
_PIECE = 1 << 16  # characters encoded at once: a document of any size costs little memory
_BATCH = 64  # pieces per call into the library, which encodes them on all its threads


class Tokenizer(Protocol):
    """Maps text to ids below `vocab_size`."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
        """Ids of all documents in order, in runs of any length; a separator follows each document."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


class BytesTokenizer:
    """UTF-8 bytes are the ids; NUL separates documents. Needs no training and no vocabulary beyond 256."""

    vocab_size = 256

    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
        for text in documents:
            yield np.frombuffer(text.encode() + b"\0", dtype=np.uint8).astype(np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class FileTokenizer:
    """A ``tokenizer.json`` of the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        """Load `path`.

        Raises:
            ValueError: missing file, or not a tokenizer.
        """
        from tokenizers import Tokenizer as Library

        if not path.is_file():
            raise ValueError(f'data.tokenizer={path} does not exist; give "bpe", "bytes" or a tokenizer.json')
        try:
            self._library: Any = Library.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"data.tokenizer={path} is not a tokenizer.json: {' '.join(str(error).split())}") from None
        ids = (self._library.token_to_id(name) for name in _ENDS)
        self._end: int | None = next((i for i in ids if i is not None), None)

    @property
    def vocab_size(self) -> int:
        return int(self._library.get_vocab_size())

    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
        pieces = _pieces(documents)
        while batch := list(islice(pieces, _BATCH)):
            encoded = self._library.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
            for (_, last), piece in zip(batch, encoded, strict=True):
                end = [self._end] if last and self._end is not None else []
                yield np.array([*piece.ids, *end], dtype=np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._library.decode(list(ids), skip_special_tokens=False))


def train_bpe(documents: Iterable[str], vocab_size: int, path: Path) -> None:
    """Learn a byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) of at most `vocab_size` tokens; write `path`.

    Raises:
        ValueError: when `vocab_size` has no room for the 256 bytes and the separator.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ValueError(
            f"tokenizer bpe needs 256 bytes and a separator, model.vocab_size={vocab_size} is too small; "
            "set model.vocab_size >= 257 or data.tokenizer=bytes"
        )
    library: Any = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator((text for text, _ in _pieces(documents)), trainer)
    library.save(str(path))


def _pieces(documents: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """(text, whether it ends its document), cut after a line end once a piece is long enough."""
    for text in documents:
        start = 0
        while len(text) - start > 2 * _PIECE:
            cut = text.find("\n", start + _PIECE, start + 2 * _PIECE) + 1 or start + 2 * _PIECE
            yield text[start:cut], False
            start = cut
        yield text[start:], True
