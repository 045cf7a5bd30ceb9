"""Less for a slow rank, then on without it: what the prediction says, and that shares change no bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny import tiny
from trainsys.config import ParallelConfig, RunConfig, load
from trainsys.elastic.analyst.remedy import balanced, deal, remedy, step_of
from trainsys.elastic.troubles import Troubles, parse_troubles
from trainsys.planner.stages import Stages
from trainsys.planner.step_schedule import routes_of
from trainsys.schedule import Costs, Routes, build, simulate


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    whole = load(tiny(tmp_path, "model.num_layers=8", "batch.global_size=16"))
    return replace(whole, parallel=replace(whole.parallel, stage_layers=(4, 4)))


def test_microbatches_are_dealt_by_speed() -> None:
    assert deal(16, (2, 2), {(0, 1): 2.0}) == (11, 5, 8, 8)
    assert deal(4, (3,), {(0, 0): 100.0}) == (1, 2, 1)


def test_a_simulated_lane_is_slow_by_its_factor() -> None:
    schedule = build("1f1b", Routes.balanced(8, [2]), 1)
    usual, slow = (simulate(schedule, Costs([1.0], [2.0], slow=s)).step_s for s in (None, (1.0, 2.0)))
    assert (usual, slow) == (12.0, 24.0)


def test_a_slow_replica_gets_less_and_the_even_shares_back(config: RunConfig) -> None:
    parallel, slow = config.parallel, {(0, 1): 2.0}
    better = balanced(config, parallel, slow)
    assert better != parallel
    assert step_of(config, better, slow) < 0.8 * step_of(config, parallel, slow)
    found = remedy(config, parallel, parallel, slow, None, "balance")
    assert (found.kind, found.parallel) == ("balance", better)
    back = remedy(config, better, parallel, {}, None, "balance")
    assert (back.kind, back.parallel) == ("balance", parallel)


def test_a_stage_with_one_replica_gives_up_layers(config: RunConfig) -> None:
    alone = replace(config.parallel, dp=1)
    better = balanced(config, alone, {(1, 0): 3.0})
    assert better.replica_shares == ()
    assert better.stage_layers[1] < 4


def test_draining_comes_last_and_only_where_it_helps(config: RunConfig) -> None:
    parallel = config.parallel
    without = ParallelConfig(dp=3, pp=1, zero=1, stage_layers=(8,), stage_replicas=(3,))
    assert remedy(config, parallel, parallel, {(0, 1): 3.0}, without, "balance").kind == "balance"
    assert remedy(config, parallel, parallel, {(0, 1): 1.02}, without, "drain").kind in ("none", "drain")
    assert remedy(config, parallel, parallel, {(0, 1): 5.0}, without, "drain").kind == "drain"
    assert remedy(config, parallel, parallel, {(0, 1): 5.0}, without, "tell").kind == "none"
    assert remedy(config, parallel, parallel, {(0, 1): 5.0}, None, "drain").kind == "none"


def test_shares_must_add_up(config: RunConfig) -> None:
    for shares, message in (((4, 4), "has 2 numbers but the stages have 4 replicas"),
                            ((8, 8, 9, 8), r"stage 1 9\+8 of 16 microbatches")):  # fmt: skip
        own = replace(config, parallel=replace(config.parallel, replica_shares=shares))
        with pytest.raises(ValueError, match=message):
            routes_of(own, Stages.of(own.model, own.parallel))


def test_troubles_print_and_parse() -> None:
    for text in ("3:2@41-60", "2>3:0.02@70-90", "5:hang@100", "1:1.5@0-"):
        (trouble,) = parse_troubles(text)
        assert str(trouble) == text
    for bad in ("3", "3:x", "a:2@1", "1>2>3:1@4"):
        with pytest.raises(ValueError, match=r"train\.emulate_slow: .* is not RANK:FACTOR"):
            parse_troubles(bad)
    for bad, said in (("1:2.0@5-2", "ends before it begins"), ("1>1:0.2", "names rank 1 twice")):
        with pytest.raises(ValueError, match=rf"train\.emulate_slow: .* {said}"):
            parse_troubles(bad)
    with pytest.raises(ValueError, match="faster"):
        parse_troubles("3:0.5@1")


def test_a_hang_strikes_once_though_its_step_be_done_again(tmp_path: Path) -> None:
    file = tmp_path / "troubles"
    file.write_text("0>1:hang@5,1:2@5-6")
    troubles = Troubles(f"file:{file}", 1)
    seen = []
    for step in (4, 5, 5, 6, 7):
        troubles.enter(step)
        seen.append((troubles.factor, troubles.lag_s(0)))
    assert seen == [(1, 0), (2, float("inf")), (2, 0), (2, 0), (1, 0)]
