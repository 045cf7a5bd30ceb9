"""A run with emulated stages that loses a replica of its last stage, with clocks governed and without."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainsys.config import RunConfig, load
from trainsys.elastic.agent import run_local
from trainsys.elastic.faults import parse_faults
from trainsys.elastic.recorder import Recorder
from trainsys.planner.timeline import timeline

STAGES, REPLICAS, _AT, _STEPS, _WARM = 2, 4, 8, 28, 3
WAYS = ("none", "emulated")


def emulated(way: str, step_s: float) -> dict[str, Any]:
    """Median seconds of a step before and after the loss, of emulated computing of about `step_s`."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(way, step_s, folder)
        with Recorder(config, Path(folder), None) as recorder:
            last = STAGES * REPLICAS - 1
            run_local(config, recorder, parse_faults(f"kill@{_AT}:{last}:forward", last + 1, _STEPS))
    layout = recorder.changes[-1].after
    assert layout is not None
    return {
        "way": way, "layout": str(layout), "before_s": statistics.median(recorder.step_s[_WARM : _AT - 1]),
        "after_s": statistics.median(recorder.step_s[_AT + _WARM :]),
    }  # fmt: skip


def config_of(way: str, step_s: float, folder: str) -> RunConfig:
    """Of a run whose stages have equally much to do, as long as no replica is lost."""
    config = load([
        "model.num_layers=2", "model.dim=1024", "model.num_heads=8", "model.vocab_size=64", "batch.seq_len=64",
        "model.max_seq_len=64", f"batch.global_size={10 * REPLICAS}", "batch.microbatch_size=1", "cluster.nodes=2",
        f"cluster.ranks_per_node={STAGES * REPLICAS // 2}", f"parallel.dp={REPLICAS}", f"parallel.pp={STAGES}",
        "parallel.zero=1", "cluster.device.tflops=1", "cluster.device.memory_gib=1000", f"train.steps={_STEPS}",
        "train.emulate=true", "elastic.heartbeat_limit_s=10", f"elastic.clocks={way}", "elastic.history=false",
        f"run_dir={folder}",
    ])  # fmt: skip
    return replace(config, train=replace(config.train, emulate_scale=step_s / timeline(config).run.step_s))
