"""Large ragged pipelines are run in part, and lead to the layouts that running all of them would."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from trainsys.config import ParallelConfig, RunConfig, load
from trainsys.planner import wide
from trainsys.planner.pipeline import most_in_flight, run_pipeline
from trainsys.planner.predict import predict
from trainsys.planner.successor import successor


@pytest.fixture
def everything_is_wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        most_in_flight.cache_clear()
        patch.setattr(wide, "LANES", 4)
        yield
    most_in_flight.cache_clear()


def on_nodes(nodes: int, dp: int, tp: int, pp: int, global_size: int) -> RunConfig:
    config = load(["configs/model/llama-8b.yaml", "configs/cluster/dgx-h100-4.yaml", "train.dtype=bfloat16",
                   f"cluster.nodes={nodes}", f"batch.global_size={global_size}", "batch.microbatch_size=1",
                   "batch.seq_len=4096", "model.max_seq_len=4096"])  # fmt: skip
    return replace(config, parallel=ParallelConfig(dp=dp, tp=tp, pp=pp, zero=1))


CASES = [(4, 8, 1, 4, 256), (4, 8, 2, 2, 200), (6, 12, 1, 4, 300), (6, 3, 2, 8, 96)]


@pytest.mark.parametrize(("nodes", "dp", "tp", "pp", "global_size"), CASES)
def test_a_part_leads_to_the_layout_that_all_of_it_does(nodes, dp, tp, pp, global_size, monkeypatch):
    config = on_nodes(nodes, dp, tp, pp, global_size)
    lost = 8 // tp
    alive = (dp - -(-lost // pp),) * pp
    teams = nodes * 8 // tp - lost
    monkeypatch.setattr(wide, "CELLS", 10**9)
    exact = successor(config, teams, config.parallel, alive)
    with monkeypatch.context() as patch:
        most_in_flight.cache_clear()
        patch.setattr(wide, "LANES", 4)
        found = successor(config, teams, config.parallel, alive)
    most_in_flight.cache_clear()
    assert predict(config, found).step_s <= 1.02 * predict(config, exact).step_s


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "interleaved"])
def test_limits_hold_what_lanes_keep(schedule):
    vp = 2 if schedule == "interleaved" else 1
    for replicas in ((2, 3, 2), (1, 4, 2), (3, 3, 1)):
        exact = most_in_flight(schedule, 24, replicas, vp)
        limits = wide.most_alive(schedule, 24, replicas, vp)
        assert all(alive <= limit for alive, limit in zip(exact, limits, strict=True))


def test_equal_replicas_with_unequal_shares_are_the_busiest_one(everything_is_wide):
    config = on_nodes(1, 3, 1, 2, 32)
    ragged = replace(config.parallel, stage_replicas=(3, 3))
    one = replace(on_nodes(1, 3, 1, 2, 33), parallel=ragged)
    assert predict(config, ragged).step_s == pytest.approx(predict(one, ragged).step_s)  # 11 of 32, and of 33


def test_unequal_replicas_take_no_less_than_their_bound_and_about_what_they_do():
    f_s = (1.0, 1.02, 1.0, 0.98)
    b_s = tuple(2 * f for f in f_s)
    replicas, microbatches = (16, 17, 17, 17), 1100  # 67 lanes
    assert wide.is_wide(microbatches, replicas, 4)
    part = run_pipeline("1f1b", microbatches, replicas, f_s, b_s)
    wide_lanes, wide.LANES, cells, wide.CELLS = wide.LANES, 10**9, wide.CELLS, 10**9
    try:
        whole = run_pipeline("1f1b", microbatches, replicas, f_s, b_s)
    finally:
        wide.LANES, wide.CELLS = wide_lanes, cells
    assert part.step_s == pytest.approx(whole.step_s, rel=0.1)
    assert part.step_s > 1.02 * max(part.busy_s)


def test_a_loss_among_128_ranks_has_one_answer():
    config, alive = on_nodes(16, 32, 1, 4, 2048), (24, 32, 32, 32)
    assert wide.is_wide(2048, alive, 4)
    found = successor(config, 120, config.parallel, alive)
    assert found == successor(config, 120, config.parallel, alive)
