"""The fast choice of a successor: pipelines without events, bounds that hold, and what looking at everything says."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig, RunConfig, load
from trainsys.planner.best_first import ascending
from trainsys.planner.candidates import candidates, reachable
from trainsys.planner.device import rate
from trainsys.planner.in_flight import least_ragged
from trainsys.planner.moves import moved_bytes
from trainsys.planner.pipeline import _simulated, least_ragged_ends, most_in_flight, run_pipeline
from trainsys.planner.predict import predict
from trainsys.planner.stages import Stages, notation
from trainsys.planner.successor import HORIZON_STEPS, IDLE, MARGIN, expected_stay_s, successor
from trainsys.schedule.schedule import stage_major


def test_best_first_search_asks_few_and_keeps_the_order_of_equals() -> None:
    exact, asked = [5.0, 3.0, inf, 3.0, 9.0], list[int]()

    def dear(item: int) -> float:
        asked.append(item)
        return exact[item]

    def bound(item: int) -> float:
        return min(exact[item], 8.0) - item / 100

    found = ascending(range(5), (lambda _: 0.0, bound, dear))
    assert next(found) == 1
    assert set(asked) == {1, 3}
    assert list(found) == [3, 0, 4]


def test_ragged_pipelines_without_events_are_those_with_events() -> None:
    """Bit for bit, and no stage ends before its bound or keeps less than is said."""
    draw = random.Random(0)
    for _ in range(60):
        replicas = tuple(draw.randint(1, 4) for _ in range(draw.randint(2, 5)))
        if len(set(replicas)) == 1:
            continue
        name, microbatches = draw.choice(["1f1b", "gpipe", "interleaved"]), draw.randint(4, 20)
        vp = draw.choice([2, 3]) if name == "interleaved" else 1
        f_s, b_s = (tuple(scale * draw.random() for _ in replicas * vp) for scale in (1, 2))
        lanes, slow = stage_major(replicas), draw.choice([0.0, 0.1, 1.5])
        hops = {
            (a, b): slow * (0.5 + draw.random()) for (s, _), a in lanes.items() for (t, _), b in lanes.items()
            if abs(s - t) in (1, len(replicas) - 1)
        }  # fmt: skip
        run = run_pipeline(name, microbatches, replicas, f_s, b_s, hops)
        assert run == _simulated(name, microbatches, replicas, f_s, b_s, tuple(sorted(hops.items())))
        least = least_ragged_ends(name, microbatches, replicas, f_s, b_s, slow / 2)
        assert all(low <= end * (1 + 1e-12) for low, end in zip(least, run.ends_s, strict=True))
        assert run.in_flight == most_in_flight(name, microbatches, replicas, vp)
        if vp == 1:
            assert all(map(int.__le__, least_ragged(name, microbatches, replicas), run.in_flight))


def test_the_successor_is_the_best_of_all_candidates(small: RunConfig) -> None:
    """Every candidate predicted, on clusters with too little memory, slow links, shared cores, experts, failures."""
    moe = load(["configs/model/mixtral-tiny.yaml", "configs/cluster/local-4.yaml", "cluster.device.tflops=1.0"])
    draw, found = random.Random(3), set[str]()
    for _ in range(60):
        config, teams, alive = drawn(draw, draw.choice([small, small, moe]))
        if not teams:
            continue
        try:
            after = notation(successor(config, teams, config.parallel, alive))
        except ValueError as error:
            after = str(error)
            assert "no layout fits" in after or "needs" in after
            assert exhaustive(config, teams, alive) is None
        else:
            assert after == exhaustive(config, teams, alive)
        found.add(after)
    assert len(found) > 20


def drawn(draw: random.Random, base: RunConfig) -> tuple[RunConfig, int, list[int]]:
    """A cluster, a layout on it, and what is alive of it."""
    pp = draw.randint(1, min(3, base.model.num_layers))
    vp = draw.choice([1, 1, 2]) if 1 < pp <= base.model.num_layers // 2 else 1
    replicas = tuple(draw.randint(1, 4) for _ in range(pp)) if vp == 1 and draw.random() < 0.5 else ()
    parallel = ParallelConfig(
        dp=max(replicas, default=draw.randint(1, 4)), pp=pp, vp=vp, cp=draw.choice([1, 1, 2]),
        schedule="interleaved" if vp > 1 else draw.choice(["1f1b", "gpipe"]), zero=draw.randint(0, 3),
        stage_replicas=replicas, recompute=draw.choice(["none", "none", "full"]),
    )  # fmt: skip
    stages = Stages.of(base.model, parallel)
    alive = [max(0, stages.copies(s) - (draw.random() < 0.4)) for s in range(pp)]
    device = replace(base.cluster.device, memory_gib=draw.choice([99.0, 0.05, 0.1, 0.2]), tflops=draw.choice([1, 0.01]))
    cluster = replace(
        base.cluster, nodes=stages.num_teams // 2 + 2, device=device, shared_cores=draw.random() < 0.3,
        node_mtbf_hours=draw.choice([0.0, 0.0, 0.001, 1.0]),
        inter_node=replace(base.cluster.inter_node, gbps=draw.choice([0.001, 0.1, 10.0])),
    )  # fmt: skip
    size = draw.choice([1, 2])
    batch = replace(base.batch, global_size=size * draw.choice([8, 12, 7]), microbatch_size=size, seq_len=64)
    return replace(base, cluster=cluster, parallel=parallel, batch=batch), sum(alive) + draw.randint(0, 2), alive


def exhaustive(config: RunConfig, teams: int, alive: list[int]) -> str | None:
    """What `successor` says, by predicting all candidates; None where none fits."""
    current = home_config = config.parallel
    before = home = Stages.of(config.model, current)
    settled = [before.runs, home.runs] if reachable(home, before, teams) else [before.runs]
    measured, link = rate(config.cluster, teams), Topology.from_config(config.cluster, teams).slowest(range(teams))
    stay_s = expected_stay_s(config, teams)

    def cost_s(parallel: ParallelConfig) -> float:
        after = Stages.of(config.model, parallel)
        step_s = predict(config, parallel, measured).step_s
        steps = stay_s / step_s if stay_s else HORIZON_STEPS
        move_s = link.transfer_s(moved_bytes(config, before, alive, after, parallel.zero)) / steps if link else 0.0
        idle = after.cp * sum(after.replicas) < teams
        return step_s * (1 + MARGIN * (after.runs not in settled) + IDLE * idle) + move_s

    for cp in (d for d in range(min(home_config.cp, teams), 0, -1) if home_config.cp % d == 0):
        options = candidates(config, current, home, cp, teams, alive)
        for recompute in dict.fromkeys((current.recompute, "full")):
            again = [replace(parallel, recompute=recompute) for parallel in options]
            fits = [p for p in again if predict(config, p, measured).peak_gib <= config.cluster.device.memory_gib]
            if fits:
                return notation(min(fits, key=cost_s))
    return None
