"""Runs that nothing disturbs, to compare with; ranks that do something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainsys.elastic import agent
from trainsys.elastic.agent import LocalCluster
from trainsys.elastic.recorder import Recorder

# what bits depend on; see tests/parallel/test_bits.py and tests/parallel/test_vocabulary.py
TELLING = ("model.", "train.", "batch.", "parallel.tp=", "parallel.cp=", "parallel.vocabulary=")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recorder]:
    """The same steps without faults, run once for all layouts whose bits are the same: on the first of them."""
    from tests.faults.test_kills import LAYOUTS, train

    def bits(layout: str) -> frozenset[str]:
        return frozenset(override for override in LAYOUTS[layout].split() if override.startswith(TELLING))

    runs: dict[frozenset[str], Recorder] = {}

    def get(layout: str) -> Recorder:
        if bits(layout) not in runs:
            first = next(other for other in LAYOUTS if bits(other) == bits(layout))
            runs[bits(layout)] = train(tmp_path_factory.mktemp("undisturbed"), first)
        return runs[bits(layout)]

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
