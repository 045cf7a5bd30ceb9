"""Tokenizers: lossless, deterministic, independent of how long documents are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.data import tokenizer as module
from trainsys.data.text import documents
from trainsys.data.tokenizer import END, BytesTokenizer, FileTokenizer, Tokenizer, train_bpe

TEXTS = list(documents("stdlib", 200_000))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe(TEXTS, 600, path)
    return FileTokenizer(path)


def ids(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return np.concatenate(list(tokenizer.encode(texts))).tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=4))
def test_round_trip_of_any_text(bpe: FileTokenizer, texts: list[str]) -> None:
    assert bpe.decode(ids(bpe, texts)) == "".join(t + END for t in texts)
    assert BytesTokenizer().decode(ids(BytesTokenizer(), texts)) == "".join(t + "\0" for t in texts)


def test_bpe_fills_its_vocabulary_and_compresses(bpe: FileTokenizer) -> None:
    found = ids(bpe, TEXTS)
    assert bpe.vocab_size == 600
    assert max(found) < 600
    assert len(found) < 0.6 * sum(len(t.encode()) for t in TEXTS)


def test_training_again_gives_the_same_file(bpe: FileTokenizer, tmp_path: Path) -> None:
    """Nodes that do not share a cache must agree on every token."""
    for name in ("a", "b"):
        train_bpe(TEXTS, 400, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_long_documents_are_encoded_in_pieces(bpe: FileTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 100)
    lines = "".join(f"line {i} of a long document\n" for i in range(200))
    runs = list(bpe.encode([lines, "x" * 1000]))
    assert len(runs) > 10
    assert bpe.decode(np.concatenate(runs).tolist()) == lines + END + "x" * 1000 + END


def test_bad_tokenizers_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.vocab_size=256 is too small; set model.vocab_size >= 257"):
        train_bpe(TEXTS, 256, tmp_path / "t.json")
    with pytest.raises(ValueError, match=r'none.json does not exist; give "bpe", "bytes" or a tokenizer.json'):
        FileTokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"not": "a tokenizer"}')
    with pytest.raises(ValueError, match=r"bad.json is not a tokenizer.json") as error:
        FileTokenizer(tmp_path / "bad.json")
    assert "\n" not in str(error.value)
