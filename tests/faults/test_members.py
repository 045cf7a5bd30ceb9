"""Ranks that never come, the last one that goes, and an end that is asked for in the middle of a change."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import command, eventually, running_now, steps_done, tiny
from trainsys.config import load
from trainsys.elastic import agent
from trainsys.elastic.agent import LocalCluster, run_local
from trainsys.elastic.faults import FaultEvent, parse_faults
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.recorder import Recorder

LIMIT_S = 6


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def broken(config: object, rank: int, *_: object) -> None:
    """Body of a spare whose machine is broken."""
    sys.exit(3)


@pytest.mark.alone
@pytest.mark.parametrize("how", ["ends", "hangs"])
def test_a_spare_that_never_joins_is_told_of(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spawn = LocalCluster.spawn

    def start(self: LocalCluster, rank: int, node: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if rank == 4 and how == "ends":
                patch.setattr(agent, "rank_main", broken)
            spawn(self, rank, node)
        if rank == 4 and how == "hangs":
            os.kill(self._processes[4].pid or 0, signal.SIGSTOP)

    monkeypatch.setattr(LocalCluster, "spawn", start)

    class UntilTold(Recorder):
        def never_joined(self, rank: int, why: str) -> None:
            super().never_joined(rank, why)
            signal.raise_signal(signal.SIGTERM)

    config = load(tiny(tmp_path, "train.steps=4000", f"elastic.start_limit_s={LIMIT_S}"))
    with UntilTold(config, config.run_dir, None) as recorder:
        run_local(config, recorder, parse_faults("join@2", 4, 4000))
    assert recorder.next_step > 3
    assert recorder.faults == []
    (told,) = [e for e in events(tmp_path) if e["event"] == "never_joined"]
    assert told["rank"] == 4
    assert ("its error, if it left one, is above" if how == "ends" else f"elastic.start_limit_s={LIMIT_S}") in told[
        "why"
    ]


def test_the_first_ranks_are_all_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(agent, "rank_main", broken)
    config = load(tiny(tmp_path))
    with (
        Recorder(config, config.run_dir, None) as recorder,
        pytest.raises(ElasticError, match="ended before it joined"),
    ):
        run_local(config, recorder)


def test_the_last_rank(tmp_path: Path) -> None:
    alone = ("cluster.nodes=1", "cluster.ranks_per_node=1", "parallel.dp=1", "parallel.pp=1")
    config = load(tiny(tmp_path, *alone))
    with Recorder(config, config.run_dir, None) as recorder, pytest.raises(ElasticError, match="no rank is left"):
        run_local(config, recorder, [FaultEvent("kill", 2, 0, "forward")])


def test_a_stop_during_a_change_saves_what_stands(tmp_path: Path) -> None:
    class Impatient(Recorder):
        def lost(self, rank: int, cause: str, step: int) -> None:
            super().lost(rank, cause, step)
            signal.raise_signal(signal.SIGTERM)

    config = load(tiny(tmp_path))
    with Impatient(config, config.run_dir, None) as recorder:
        run_local(config, recorder, parse_faults("kill@5:1:backward", 4, 12))
    ((step, path, error),) = recorder.saves
    assert (step, error) == (5, "")
    assert Path(path).is_dir()
    assert recorder.next_step == 5


@pytest.mark.alone
def test_a_pause_of_everything_costs_no_rank(tmp_path: Path) -> None:
    with command("train", *tiny(tmp_path, "train.steps=4000", "elastic.heartbeat_limit_s=1")) as running:
        assert eventually(lambda: steps_done(tmp_path) >= 2, 60)
        os.killpg(running.process.pid, signal.SIGSTOP)
        assert not eventually(lambda: running.process.poll() is not None, 2.5)
        before = steps_done(tmp_path)
        os.killpg(running.process.pid, signal.SIGCONT)
        assert eventually(lambda: steps_done(tmp_path) >= before + 5, 60)
        running.process.send_signal(signal.SIGTERM)
        assert running.finish()[0] == 0
    assert [e for e in events(tmp_path) if e["event"] == "lost"] == []


@pytest.mark.alone
def test_a_frozen_rank_does_not_outlive_its_agent(tmp_path: Path) -> None:
    with command("train", *tiny(tmp_path, "train.steps=4000", "elastic.heartbeat_limit_s=60")) as running:
        assert eventually(lambda: steps_done(tmp_path) >= 2, 60)
        ranks = running.ranks()
        os.kill(ranks[0], signal.SIGSTOP)
        running.process.send_signal(signal.SIGKILL)
        assert eventually(lambda: not any(map(running_now, ranks)), 5)
