"""A vocabulary in parts is one matrix in every other framework's checkpoint, and in parts again when it is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from values import LLAMA, Values, assert_same, step_folder, targets, write

from trainsys.elastic.kinds import open_source
from trainsys.interop.convert import Source


def filled(tied: bool, parts: int) -> Values:
    """Masters do not depend on the parts; other slots do, and are left out."""
    values = Values(replace(LLAMA, tied=tied, vocab_parts=parts))
    values.slots = ("master",)
    return values


@pytest.mark.parametrize(("kind", "tied"), [("hf", False), ("hf", True), ("megatron weights", False)])
def test_parts_are_joined_and_cut(kind: str, tied: bool, tmp_path: Path) -> None:
    whole, in_parts = filled(tied, 1), filled(tied, 5)
    for written, read in ((in_parts, whole), (whole, in_parts)):
        folder = tmp_path / str(written.config.vocab_parts)
        write(written, targets(written)[kind][0], folder)
        assert_same(opened(kind, folder), read, ("master",))


def test_a_checkpoint_of_ours_keeps_its_parts(tmp_path: Path) -> None:
    values = Values(replace(LLAMA, vocab_parts=4))
    folder = step_folder(values, tmp_path / "step-00000007", pp=2, vocabulary="one_barrier")
    assert_same(opened("dcp", folder), values)


def opened(kind: str, folder: Path) -> Source:
    return open_source(f"{kind.split()[0]}:{folder}")
