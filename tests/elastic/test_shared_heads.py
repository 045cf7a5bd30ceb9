"""Teams whose neighbours share a key/value head, through a loss and through a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import tiny
from trainsys.cli.main import main
from trainsys.config import load
from trainsys.elastic.drill import drill

MODEL = ("model.family=qwen3", "model.num_kv_heads=1", "model.head_dim=12", "train.dtype=float64", "parallel.pp=1")
TP4 = (*MODEL, "parallel.dp=1", "parallel.tp=4")
TP2 = (*MODEL, "parallel.dp=2", "parallel.tp=2")
DP4 = (*MODEL, "parallel.dp=4")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("zero", [0, 1])
def test_a_lost_member_of_a_sharing_team(tmp_path: Path, zero: int) -> None:
    """The census compares every copy with its owner on the way, and the loss stays bit-equal."""
    shape = ("parallel.dp=2", "parallel.tp=2", f"parallel.zero={zero}")
    faults = "faults.schedule=kill@2:1:backward,join@4"
    result = drill(load(tiny(tmp_path, *MODEL, *shape, "train.steps=6", faults)))
    assert (result["steps_lost"], result["samples_lost"], result["samples_repeated"]) == (0, 0, 0)
    assert result["bit_equal_loss"]
    assert result["bit_equal_grad_norm"]
    assert result["not_struck"] in ([], ["join@4"])  # on a busy machine the fresh rank comes after the last step


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("first", "then"),
    [((*TP4, "parallel.zero=0"), DP4), ((*TP2, "parallel.zero=1"), DP4), (DP4, TP4)],
    ids=["from tp4", "from tp2 zero1", "to tp4"],
)
def test_a_checkpoint_goes_both_ways(tmp_path: Path, first: tuple[str, ...], then: tuple[str, ...]) -> None:
    """Written where heads are shared and read where they are not, and the other way round."""
    every = ("train.steps=4", "checkpoint.every=2", "checkpoint.keep=9")
    assert main(["train", *tiny(tmp_path / "run", *first, *every)]) == 0
    whole = losses(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000004").rename(tmp_path / "later")
    assert main(["train", *tiny(tmp_path / "run", *then, *every)]) == 0
    assert losses(tmp_path / "run") == pytest.approx(whole, abs=1e-10)
