"""Plans on links that differ: a faster placed plan where the plain order is bad, never a slower one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from trainsys.cli.main import main
from trainsys.config import ClusterConfig, LinksConfig, RunConfig, load
from trainsys.planner.device import rate
from trainsys.planner.place_plans import place_plans
from trainsys.planner.predict import predict
from trainsys.planner.search import search
from trainsys.planner.successor import successor

FAST, SLOW = 5.0, 0.2
CROSSED = [[FAST if a + b == 3 else SLOW for b in range(4)] for a in range(4)]  # 0 with 3 and 1 with 2


def on_links(config: RunConfig, gbps: object, nodes: int, per_node: int = 1) -> RunConfig:
    links = [[0.0 if a == b else v for b, v in enumerate(row)] for a, row in enumerate(gbps)]  # type: ignore[call-overload]
    cluster = dataclasses.replace(
        config.cluster, nodes=nodes, ranks_per_node=per_node, links=LinksConfig(links)  # type: ignore[arg-type]
    )  # fmt: skip
    return dataclasses.replace(config, cluster=cluster)


def test_a_bad_plain_order_is_mended(small: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = on_links(small, CROSSED, 4)
    plan = search(dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, dp=2, pp=2)), None,
                  ["dp", "pp"]).plans[0]  # fmt: skip
    plain = predict(config, dataclasses.replace(plan.parallel, devices=()))
    assert sorted(plan.parallel.devices) == [0, 1, 2, 3]
    assert plan.parallel.devices != (0, 1, 2, 3)
    assert "placed" in plan.layout
    assert plan.step_s < 0.8 * plain.step_s
    at = plan.parallel.devices  # the pairs that average gradients have the fast links
    assert {at[0] + at[2], at[1] + at[3]} == {3}
    source = tmp_path / "cluster.yaml"
    rows = [[0.0 if a == b else v for b, v in enumerate(row)] for a, row in enumerate(CROSSED)]
    source.write_text(
        f"base: {Path('configs/model/llama-small.yaml').resolve()}\ncluster: {{nodes: 4, ranks_per_node: 1, "
        f"device: {{tflops: 1.0}}, links: {{gbps: {rows}}}}}\n"
    )
    out = tmp_path / "plan.yaml"
    assert main(["plan", str(source), "parallel.dp=2", "parallel.pp=2", "batch.microbatch_size=2", f"--out={out}"]) == 0
    assert "placed" in capsys.readouterr().out
    written = load([str(out)])
    assert written.parallel.devices == at
    assert predict(written, written.parallel).step_s == pytest.approx(plan.step_s, rel=0.01)


@pytest.mark.parametrize(("nodes", "per_node", "seed"), [(4, 1, 0), (2, 2, 1), (8, 1, 2)])
def test_never_slower(small: RunConfig, nodes: int, per_node: int, seed: int) -> None:
    size = nodes * per_node
    gbps = np.exp(np.random.default_rng(seed).normal(0, 1, (size, size)))
    config = on_links(small, gbps.tolist(), nodes, per_node)
    measured = rate(config.cluster, size)
    grids = [{"dp": 2, "pp": size // 2}, {"dp": size}, {"dp": size // 2, "tp": 2}, {"dp": 2, "pp": 2, "tp": size // 4}]
    plain = [
        predict(config, dataclasses.replace(config.parallel, **({"tp": 1, "pp": 1, "dp": 1} | grid)), measured)
        for grid in grids
    ]
    found = place_plans(config, plain, measured, seconds=0.4)
    assert all(new.step_s <= old.step_s for new, old in zip(found, plain, strict=True))
    assert min(new.step_s / old.step_s for new, old in zip(found, plain, strict=True)) < 0.99, (
        "nothing gained on links that differ by factors"
    )
    for plan in found:
        assert sorted(plan.parallel.devices) in ([], list(range(size)))


def test_regular_links_need_no_places(small: RunConfig) -> None:
    assert all(not plan.parallel.devices for plan in search(small).plans)


def test_whole_teams_move_on_links_of_nodes(small: RunConfig) -> None:
    gbps = np.full((4, 4), SLOW)
    for a, b in ((0, 2), (1, 3)):
        gbps[a, b] = gbps[b, a] = FAST
    config = on_links(small, gbps.tolist(), 4, 2)
    parallel = dataclasses.replace(config.parallel, dp=4, tp=2, pp=1)
    ring = dataclasses.replace(parallel, dp=2, pp=2)
    measured = rate(config.cluster, 8)
    (placed,) = place_plans(config, [predict(config, dataclasses.replace(ring, zero=0), measured)], measured, 0.5)
    places = placed.parallel.devices or tuple(range(8))
    assert all(places[i] // 2 == places[i + 1] // 2 for i in range(0, 8, 2)), "a tp team left its node"


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("[0,1,2]", r"parallel\.devices names 3 ranks but the layout has 4 places"),
        ("[0,1,2,2]", r"parallel\.devices names rank 2 twice"),
        ("[0,1,2,4]", r"parallel\.devices names rank 4 but there are only ranks 0 to 3"),
    ],
)
def test_wrong_places_are_refused(small: RunConfig, devices: str, message: str) -> None:
    from trainsys.planner.check import check_parallel

    config = load(["parallel.dp=2", "parallel.pp=2", f"parallel.devices={devices}"])
    with pytest.raises(ValueError, match=message):
        check_parallel(dataclasses.replace(small, parallel=config.parallel), 4)


def test_a_plan_finds_the_places_itself(small: RunConfig) -> None:
    with pytest.raises(ValueError, match=r"parallel\.devices cannot be kept"):
        search(small, None, ["devices"])


def test_successors_have_no_places_of_their_own(small: RunConfig) -> None:
    cluster = ClusterConfig(nodes=2, ranks_per_node=2, device=small.cluster.device)
    parallel = dataclasses.replace(small.parallel, dp=2, pp=2, devices=(0, 3, 1, 2))
    config = dataclasses.replace(small, cluster=cluster, parallel=parallel)
    assert successor(config, 3, parallel, (2, 1)).devices == ()
