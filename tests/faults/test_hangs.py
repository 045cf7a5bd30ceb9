"""A main thread that hangs, and a message that never arrives, are named in time; stragglers are relieved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import tiny
from trainsys.cli.prepare import prepared
from trainsys.elastic.agent import run_local
from trainsys.elastic.recorder import Recorder

pytestmark = pytest.mark.alone

LIMIT_S = 0.6


def train(run_dir: Path, *overrides: str) -> Recorder:
    config = prepared(tiny(run_dir, *overrides))
    with Recorder(config, config.run_dir, None) as recorder:
        run_local(config, recorder)
    return recorder


@pytest.mark.timeout(60)
def test_a_hang_and_a_lost_message_are_named_within_the_limit(tmp_path: Path) -> None:
    """The lost message costs new connections, the hang its rank, and neither waits for comm_timeout_s=20."""
    got = train(
        tmp_path, f"elastic.hang_limit_s={LIMIT_S}", "train.emulate_slow='0>1:hang@2,2:hang@4'", "train.steps=7"
    )
    assert [(step, f.kind, f.place) for step, f in got.findings if "hang" in f.kind] == [
        (2, "communication hang", (0, 1)),
        (4, "computation hang", (2,)),
    ]
    assert all(f.lasted_s < LIMIT_S + 0.5 for _, f in got.findings)  # the machine may be busy; `bench c4` measures it
    assert [(f.kind, f.rank, f.step) for f in got.faults] == [("stall", 2, 4)]
    assert len(got.decisions) == 7


@pytest.mark.timeout(60)
def test_a_slow_rank_gets_less_to_do(tmp_path: Path) -> None:
    got = train(
        tmp_path, "train.emulate=true", "cluster.device.tflops=0.002", "cluster.shared_cores=false",
        "train.emulate_slow=1:4@14-", "train.steps=26", "elastic.stragglers=balance",
    )  # fmt: skip
    assert (1,) in [f.place for _, f in got.findings if f.kind == "slow rank"]
    first = next(change for change in got.changes if change.reason.startswith("balance"))
    assert first.after is not None
    assert first.after.ranks == (0, 1, 2, 3)
    assert first.parallel is not None
    even = (first.parallel.replica_shares, first.parallel.stage_layers)
    assert even != ((), (2, 2))
    assert got.faults == []
