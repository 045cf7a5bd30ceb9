"""What a plan says of attention between cp teams."""

from __future__ import annotations

import pytest

from trainsys.cli.plan_attention import attention, attention_json, show_attention
from trainsys.config import load
from trainsys.planner.check_attention import check_attention
from trainsys.sequence.select import AS_OTHERS, MANY

SMALL = ["configs/model/llama-small.yaml", "configs/cluster/local-4.yaml", "cluster.device.tflops=0.1"]


def test_the_method_taken_is_the_one_named(capsys: pytest.CaptureFixture[str]) -> None:
    wide = ["cluster.ranks_per_node=8", "parallel.cp=16", "parallel.cp_method=direct", "batch.seq_len=64"]
    config = load([*SMALL, *wide])
    assert config.parallel.cp > MANY
    show_attention(config, attention(config))
    assert "cp16 by direct:" in " ".join(capsys.readouterr().out.split())


def test_what_is_the_same_is_listed_once() -> None:
    config = load([*SMALL, "parallel.cp=4"])
    names = [entry["method"] for entry in attention_json(attention(config))]
    assert len(names) == len(set(names)) > 4
    assert not set(AS_OTHERS) & set(names)
    merged = load([*SMALL, "parallel.cp=4", "parallel.cp_merge=schedule"])
    assert set(AS_OTHERS) <= {entry["method"] for entry in attention_json(attention(merged))}


def test_linear_layers_have_no_keys() -> None:
    tiny = ["configs/model/linear-llama-tiny.yaml", "configs/cluster/local-4.yaml", "cluster.device.tflops=0.1"]
    assert attention(load([*tiny, "parallel.cp=4", "model.softmax_every=0"])) == []


def test_which_methods_can_is_said() -> None:
    with pytest.raises(ValueError, match=r"needs 2 or more hosts .*ring, tasp, direct.* can\)"):
        check_attention(load([*SMALL, "parallel.cp=2", "cluster.nodes=1", "parallel.cp_method=hierarchical"]))
