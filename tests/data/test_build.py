"""Token files, the cache, and the way from a config to a token source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainsys.config import DataConfig
from trainsys.data.build import build_source
from trainsys.data.cache import cached
from trainsys.data.tokenizer import BytesTokenizer, train_bpe
from trainsys.data.tokens import TokenFile


def write_ids(path: Path, ids: list[int], dtype: str) -> Path:
    path.write_bytes(np.array(ids, dtype=dtype).tobytes())
    return path


def test_data_does_not_import_torch() -> None:
    code = "import sys, trainsys.data.build, trainsys.data.sampler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "dtype", "vocab"),
    [("a.bin", "<u2", 65536), ("a.bin", "<u4", 65537), ("a.uint32.bin", "<u4", 100), ("a.uint16.bin", "<u2", 70000)],
)
def test_token_file_widths_and_sequences(tmp_path: Path, name: str, dtype: str, vocab: int) -> None:
    source = build_source(DataConfig(path=str(write_ids(tmp_path / name, list(range(11)), dtype))), vocab)
    assert source.num_tokens == 11
    assert source.vocab_size == vocab
    assert source.sequence(1, 5).tolist() == [5, 6, 7, 8, 9, 10]
    assert source.sequence(1, 5).dtype == np.int64


def test_bad_token_files_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"none.bin does not exist"):
        build_source(DataConfig(path=str(tmp_path / "none.bin")), 100)
    (tmp_path / "empty.bin").touch()
    with pytest.raises(ValueError, match=r"empty.bin is empty"):
        build_source(DataConfig(path=str(tmp_path / "empty.bin")), 100)
    (tmp_path / "odd.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"odd.bin has 3 bytes, not a multiple of 2 \(uint16 ids\)"):
        build_source(DataConfig(path=str(tmp_path / "odd.bin")), 100)
    big = write_ids(tmp_path / "big.bin", [1, 2, 3, 100, 4, 5], "<u2")
    message = r"token id 100 at position 3, but model.vocab_size=100; set model.vocab_size above"
    with pytest.raises(ValueError, match=message):
        TokenFile(big, 100)
    monkeypatch.setattr("trainsys.data.tokens.SCANNED", 2)  # beyond what opening scans, reading finds it
    source = TokenFile(big, 100)
    assert source.sequence(0, 2).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=message):
        source.sequence(1, 2)


def test_bytes_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("héllo")
    source = build_source(DataConfig(str(tmp_path / "a.txt"), "bytes", cache_dir=str(tmp_path / "cache")), 256)
    assert BytesTokenizer().decode(source.sequence(0, source.num_tokens - 1).tolist()) == "héllo\0"
    with pytest.raises(ValueError, match=r"token id 195 at position 1, but model.vocab_size=128"):
        build_source(DataConfig(str(tmp_path / "a.txt"), "bytes", cache_dir=str(tmp_path / "cache")), 128)


def test_the_cache_follows_content_tokenizer_and_vocabulary(tmp_path: Path) -> None:
    text, cache = tmp_path / "a.txt", tmp_path / "cache"

    def ids(tokenizer: str, vocab: int) -> list[int]:
        source = build_source(DataConfig(str(text), tokenizer, cache_dir=str(cache)), vocab)
        return source.sequence(0, source.num_tokens - 1).tolist()

    def modified() -> dict[str, int]:
        return {f.name: f.stat().st_mtime_ns for f in sorted(cache.glob("[!.]*"))}

    text.write_text("a rose is a rose is a rose\n" * 50)
    first = ids("bpe", 280)
    made = modified()
    assert [name.split("bpe")[1] for name in made] == [".json", ".uint16.bin"]
    assert ids("bpe", 280) == first
    assert modified() == made
    assert len(ids("bytes", 280)) == 27 * 50 + 1
    assert ids("bpe", 259) != first  # this text runs out of pairs before 280
    text.write_text("a rose is a nose\n" * 50)
    assert ids("bpe", 280) != first
    train_bpe([text.read_text()], 260, tmp_path / "own.json")
    assert max(ids(str(tmp_path / "own.json"), 280)) < 260
    assert not list(cache.glob("*.tmp"))


def test_processes_that_start_together_agree_and_work_once(tmp_path: Path) -> None:
    code = f"""
from trainsys.config import DataConfig
from trainsys.data.build import build_source
s = build_source(DataConfig(max_bytes=300_000, cache_dir={str(tmp_path)!r}), 512)
print(s.num_tokens, hash(s.sequence(0, s.num_tokens - 1).tobytes()))
"""
    env = {"PYTHONHASHSEED": "0", "PATH": ""}
    racers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) for _ in range(4)]
    outputs = {racer.communicate(timeout=60)[0] for racer in racers}
    assert [racer.returncode for racer in racers] == [0] * 4
    assert len(outputs) == 1
    assert len(list(tmp_path.glob("*-*.json"))) == len(list(tmp_path.glob("*.bin"))) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_a_failed_maker_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        cached(tmp_path / "x", fail)
    assert not list(tmp_path.glob("*.tmp"))
    assert cached(tmp_path / "x", lambda path: path.write_text("whole") and None).read_text() == "whole"


def test_an_unusable_cache_folder_names_the_knob(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write the cache file .*; set data.cache_dir"):
        build_source(DataConfig(max_bytes=10_000, cache_dir=str(tmp_path / "file")), 300)
