"""The simulated goodput of a cluster under failures."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from benchmarks.goodput import MTBF_HOURS, Job, simulate, variants

JOB = Job(1000, 10, 10, 600, 2.2, 0.6, 4, 16, 0.03, 3600, spares=5, announced=0.2)
YEAR_S = 365 * 86400.0


def test_without_failures_only_the_overheads_are_left() -> None:
    goodput, failures = simulate(JOB, 1e6 * YEAR_S, 10, 0)
    assert failures == 0
    assert goodput == pytest.approx(1 - 0.03 - 10 / 3610)


def test_expected_losses_are_what_is_simulated() -> None:
    """Of restarts alone: each costs a pause and half an interval between checkpoints, and the node its repair."""
    bare = replace(variants(JOB)["checkpoints and restarts"], repair_hours=1e-9)
    mtbf_s, days = 2e4 * 3600.0, 3000
    goodput, failures = simulate(bare, mtbf_s, days, 1)
    interval = bare.interval_s(mtbf_s)
    assert failures == pytest.approx(days * 86400 / (mtbf_s / 1000), rel=0.05)
    steady = interval / (interval + 10)
    expected = steady * (1 - (bare.pause_s(False) + interval / 2) / (mtbf_s / 1000))
    assert goodput == pytest.approx(expected, abs=0.01)


def test_on_a_large_cluster_each_mechanism_helps() -> None:
    job = replace(JOB, nodes=16384, spares=82)
    for hours in MTBF_HOURS.values():
        got = [simulate(one, hours * 3600, 30, 0)[0] for one in variants(job).values()][:6]
        assert all(a < b + 2e-3 for a, b in itertools.pairwise(got)), got
