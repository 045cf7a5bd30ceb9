"""Runs that nothing disturbs, to compare with; ranks that do something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainsys.elastic import agent
from trainsys.elastic.agent import LocalCluster
from trainsys.elastic.recorder import Recorder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recorder]:
    """The same steps without faults, run once per layout."""
    from tests.faults.test_kills import train

    runs: dict[str, Recorder] = {}

    def get(layout: str) -> Recorder:
        if layout not in runs:
            runs[layout] = train(tmp_path_factory.mktemp("undisturbed"), layout)
        return runs[layout]

    return get


@pytest.fixture
def rank_1_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Gives rank 1 another body, when it is started next."""
    spawn = LocalCluster.spawn

    def give(body: Any) -> None:
        def start(self: LocalCluster, rank: int, node: int) -> None:
            with pytest.MonkeyPatch.context() as patch:
                if rank == 1:
                    patch.setattr(agent, "rank_main", body)
                spawn(self, rank, node)

        monkeypatch.setattr(LocalCluster, "spawn", start)

    return give
