"""Configuration files: bases, empty values, and what is wrong with them in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainsys.config import load


def test_an_empty_override_is_the_empty_string() -> None:
    assert load(["faults.schedule="]).faults.schedule == ""


@pytest.mark.parametrize(
    "text", ["yes", "2024_01", "007", "12:30", "1e3", "null", "a: b", "[x", "it's", "a #b", "~/runs", "2024-01-02"]
)
def test_a_text_is_what_stands_there(text: str) -> None:
    """Not what YAML would make of it."""
    assert load([f"run_dir={text}"]).run_dir == text
    assert load([f"cluster.links.file={text}"]).cluster.links.file == text


@pytest.mark.parametrize(("given", "text"), [("'007'", "007"), ('"a b"', "a b"), ("''", ""), ("'it''s'", "it's")])
def test_quotes_around_a_text_go(given: str, text: str) -> None:
    assert load([f"train.init_from={given}"]).train.init_from == text


def test_what_is_no_text_is_read_as_yaml() -> None:
    config = load(["train.steps=1_000", "checkpoint.beside=yes", "elastic.clocks=none", "parallel.stage_layers=[1, 2]"])
    assert (config.train.steps, config.checkpoint.beside, config.elastic.clocks) == (1000, True, "none")
    assert config.parallel.stage_layers == (1, 2)


def test_later_files_win_and_bases_come_first(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {steps: 3, seed: 1}")
    (tmp_path / "run.yaml").write_text("base: base.yaml\ntrain: {steps: 5}")
    config = load([str(tmp_path / "run.yaml"), "train.seed=2"])
    assert (config.train.steps, config.train.seed) == (5, 2)


@pytest.mark.parametrize("base", ["3", "[[a]]", "{a: 1}"])
def test_a_base_of_another_type_is_one_line(base: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"base: {base}")
    with pytest.raises(ValueError, match="base must be a path or a list of paths"):
        load([str(path)])


def test_more_microbatches_than_the_tree_numbers() -> None:
    from trainsys.planner.check import check_batch

    with pytest.raises(ValueError, match=r"9000 microbatches of 1.*set batch.microbatch_size=2 or more"):
        check_batch(load(["batch.global_size=9000", "batch.microbatch_size=1"]))


def test_what_a_gpu_allocation_cannot_do() -> None:
    assert load(["elastic.release=progressive"]).elastic.release == "progressive"
    with pytest.raises(ValueError, match=r"page by page, which nccl's devices cannot; set elastic\.release=commit"):
        load(["elastic.release=progressive", "cluster.device.backend=nccl"])
    with pytest.raises(ValueError, match=r"elastic\.staging_mib=0 must lie in"):
        load(["elastic.staging_mib=0"])
