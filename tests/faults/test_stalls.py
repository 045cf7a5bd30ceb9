"""A rank whose main thread stands still while its heart beats: nobody may wait for it for ever.

The trap: a reader that hung kept a whole job behind a barrier without a limit, for hours (marin #8534, torchtitan
#3065). A heartbeat says only that a process is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny
from trainsys.config import load
from trainsys.elastic import serve, worker
from trainsys.elastic.agent import run_local
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.recorder import Recorder

pytestmark = pytest.mark.alone

LIMIT_S = 1.5
ORIGINAL = serve.rank_main
STALLS = (f"elastic.stall_limit_s={LIMIT_S}", "elastic.comm_timeout_s=2", "train.steps=6")


def sleep_for_ever(*_: Any) -> Any:
    time.sleep(3600)


def stalled_reader(*args: Any) -> None:
    """Body of a rank whose first read of the state never returns."""
    worker.initial_state = sleep_for_ever  # type: ignore[assignment]
    ORIGINAL(*args)


def stalled_data(*args: Any) -> None:
    """Body of a rank whose data stops coming at step 3."""
    batch = worker.Worker._batch

    def late(self: worker.Worker, engine: Any, step: int) -> Any:
        return sleep_for_ever() if step == 3 else batch(self, engine, step)

    worker.Worker._batch = late  # type: ignore[method-assign]
    ORIGINAL(*args)


@pytest.mark.timeout(60)
def test_a_stalled_reader_ends_the_start_within_the_limit(rank_1_runs: Callable[[Any], None], tmp_path: Path) -> None:
    rank_1_runs(stalled_reader)
    config = load(tiny(tmp_path, *STALLS))
    with (
        Recorder(config, config.run_dir, None) as recorder,
        pytest.raises(ElasticError, match=r"rank 1 did not answer within elastic\.stall_limit_s=1\.5"),
    ):
        run_local(config, recorder)


@pytest.mark.timeout(60)
def test_a_rank_that_stalls_in_a_step_is_lost_like_a_dead_one(
    rank_1_runs: Callable[[Any], None], tmp_path: Path
) -> None:
    """The others' exchanges time out, the stalled rank does not answer, and training goes on with the same bits."""
    recorders = {}
    for name, body in (("stalled", stalled_data), ("undisturbed", ORIGINAL)):
        rank_1_runs(body)
        config = load(tiny(tmp_path / name, *STALLS))
        with Recorder(config, config.run_dir, None) as recorders[name]:
            run_local(config, recorders[name])
    struck, whole = recorders["stalled"], recorders["undisturbed"]
    assert [(f.kind, f.rank, f.step) for f in struck.faults] == [("stall", 1, 3)]
    assert whole.faults == []
    assert struck.decisions == whole.decisions
    assert struck.samples == whole.samples
    assert len(whole.decisions) == 6
