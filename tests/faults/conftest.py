"""Runs that nothing disturbs, to compare with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

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
