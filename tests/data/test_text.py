"""Reading text: every kind of place, in a fixed order, and one clear line for every bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsys.data.text import documents


def read(path: object, max_bytes: int = 1 << 20) -> list[str]:
    return list(documents(str(path), max_bytes))


def test_stdlib_is_python_source_in_a_fixed_order() -> None:
    texts = read("stdlib", 300_000)
    assert sum(len(t.encode()) for t in texts) == 300_000
    assert texts == read("stdlib", 300_000)
    assert any("import " in t for t in texts)
    shorter = read("stdlib", 50_000)
    assert "".join(texts).startswith("".join(shorter))


def test_txt_jsonl_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_text('{"text": "first"}\n\n{"text": "more", "id": 1}\n')
    (tmp_path / "c.md").write_text("not read")
    (tmp_path / "d.txt").write_text("")
    assert read(tmp_path / "b.txt") == ["second"]
    assert read(tmp_path) == ["first", "more", "second"]


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.integers(1, 40))
def test_limit_counts_bytes_and_never_cuts_a_character(
    tmp_path_factory: pytest.TempPathFactory, text: str, n: int
) -> None:
    place = tmp_path_factory.mktemp("limit")
    (place / "a.txt").write_bytes(text.encode())
    (place / "a.jsonl").write_text(json.dumps({"text": text}))
    want = text.encode()[:n].decode(errors="ignore")
    for name in ("a.txt", "a.jsonl"):
        if want:
            assert read(place / name, n) == [want]
        else:
            with pytest.raises(ValueError, match="is empty"):
                read(place / name, n)


def test_text_past_the_limit_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\xff\xff")
    assert read(tmp_path / "a.txt", 4) == ["good"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt is empty: no text to train on"),
        ("a.jsonl", b"\n\n", "a.jsonl is empty: no text to train on"),
        ("a.txt", b"good\xe4 not utf-8", "a.txt is not UTF-8: byte 0xe4 at offset 4"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\xff"}', "a.jsonl is not UTF-8: byte 0xff at offset 25"),
        ("a.jsonl", b'{"text": "ok"}\n\n{"txt": "no"}', 'a.jsonl line 3 has no string field "text"'),
        ("a.jsonl", b'{"text": 3}', 'a.jsonl line 1 has no string field "text"'),
        ("a.jsonl", b'["text"]', 'a.jsonl line 1 has no string field "text"'),
        ("a.jsonl", b'{"text": "ok"}\n{"text": ', "a.jsonl line 2 is not JSON: Expecting value at column 10"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl line 1 has half of a surrogate pair"),
        ("a.pdf", b"x", "a.pdf ends in '.pdf'; known: .txt, .jsonl, .bin, or a folder"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        read(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist; give a .txt"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is a folder without .txt or .jsonl files"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"data.max_bytes=0 must be at least 1"):
        read("stdlib", 0)
