"""Training over a real Ray cluster of three nodes: one is removed without grace, another joins."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_kills import Patient, check, train
from tests.tiny import ROOT, tiny
from trainsys.config import load
from trainsys.elastic.launchers import launch
from trainsys.elastic.messages import Proposal
from trainsys.elastic.recorder import Recorder
from trainsys.parallel.step import Decision
from trainsys.space.layout import Layout

STEPS = 40  # time to join in
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes with a CPU each, as processes on this machine; this one is a driver."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the processes that Ray starts
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="warning")
    yield made
    ray.shutdown()
    made.shutdown()


class Moving(Patient):
    """Takes a node away in the middle, and brings another."""

    cluster: Any = None

    def committed(self, decision: Decision, proposals: Mapping[int, Proposal], epoch: int, layout: Layout) -> None:
        super().committed(decision, proposals, epoch, layout)
        if decision.step == 4:
            self.cluster.remove_node(self.cluster.worker_nodes.copy().pop(), allow_graceful=False)
            self.cluster.add_node(num_cpus=1)
        if decision.step >= 4 and not self.joins:
            time.sleep(1.5)  # ranks import torch anew here


def test_a_node_is_removed_and_another_joins(cluster: Any, tmp_path: Path) -> None:
    steps = (f"train.steps={STEPS}", "batch.global_size=9")
    layout = (
        *steps, "parallel.dp=3", "parallel.pp=1", "cluster.nodes=3", "cluster.ranks_per_node=1",
        "cluster.shared_cores=false",
    )  # fmt: skip
    wide = load(tiny(tmp_path / "wide", *layout, "launcher=ray", "cluster.ranks_per_node=2"))
    with pytest.raises(ValueError, match="need 6 places, but the Ray cluster has 3 free in 3 nodes"):
        launch(wide, Recorder(wide, wide.run_dir))
    config = load(tiny(tmp_path / "ours", *layout, "launcher=ray"))
    with Moving(config, config.run_dir) as ours:
        ours.cluster = cluster
        launch(config, ours)
    check(ours, train(tmp_path / "undisturbed", "dp2·pp2 zero1", "", *steps), config)
    assert [f.kind for f in ours.faults] == ["exit"]
    assert [rank for _, rank in ours.joins] == [3]
    assert [c.after.replicas for c in ours.changes if c.after] == [(3,), (2,), (3,)]
