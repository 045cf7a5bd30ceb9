"""Configuration files: bases, empty values, and what is wrong with them in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainsys.config import load


def test_an_empty_override_is_the_empty_string() -> None:
    assert load(["faults.schedule="]).faults.schedule == ""


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
