"""Partial pipelines on unequal nodes and links: simulated steps of all stages, random skipping, greedy, and planned.

Clusters at random: nodes in four regions, of three speeds. All but the last rows have our places for the nodes;
*all stages* has its own, planned by the same search, so that what is left is what skipping saves. `--train` trains a
small model with such paths instead.

    trainsys bench skip [--nodes 20] [--seeds 0 1 2 3 4] [--picture skip.png] [--json]
    trainsys bench skip --emulate --nodes 8 --stages 4 --visits 3
    trainsys bench skip --train [--steps 200] [--json]
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from statistics import mean
from time import perf_counter
from typing import Any

from benchmarks._skip_genetic import breed
from benchmarks._skip_swarm import replicas, swarm
from trainsys.cli.arguments import Parser
from trainsys.planner.skip.bound import bound_s
from trainsys.planner.skip.check import check_paths
from trainsys.planner.skip.places import any_places, choose_places
from trainsys.planner.skip.search import SkipPlan, search
from trainsys.planner.skip.setting import Setting, Stages, without_skips
from trainsys.planner.skip.to_schedule import costs_of, events_of, to_schedule
from trainsys.schedule.simulate import simulate
from trainsys.schedule.verify import verify

COLUMNS = {
    "all_random_s": "all stages, random",
    "all_s": "all stages, planned",
    "all_unlimited_s": "the same, memory unlimited",
    "random_s": "random skipping",
    "greedy_s": "nearest node",
    "balanced_s": "least loaded node",
    "conflicts_s": "conflicts alone",
    "anneal_s": "annealing alone",
    "ours_s": "ours",
    "genetic_s": "ours on bred places",
    "anywhere_s": "ours on any places",
}


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench skip", __doc__.splitlines()[0], "  trainsys bench skip --nodes 20 --picture skip.png")
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--visits", type=int, default=4, help="stages that a microbatch visits")
    parser.add_argument("--per-home", type=int, default=4, help="microbatches of each node of stage 0")
    parser.add_argument("--limit", type=int, default=4, help="microbatches that a node holds at once")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--evaluations", type=int, default=3000, help="simulations of each search")
    parser.add_argument("--picture", help="a PNG of the first seed's step, all stages and ours")
    parser.add_argument("--emulate", action="store_true", help="run both plans on sleeping ranks, at most 8 nodes")
    parser.add_argument("--train", action="store_true", help="train a small model with and without skipping")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--sgd", action="store_true", help="train with SGD and momentum rather than AdamW")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.emulate:
        return _emulated(args)
    return _trained(args) if args.train else _planned(args)


def _emulated(args: Namespace) -> int:
    from benchmarks._skip_emulated import emulate

    if args.nodes > 8:
        raise ValueError(f"--nodes={args.nodes} ranks are too many to emulate on a few cores; set --nodes 8 or fewer")
    sizes = (args.nodes, args.stages, args.visits, args.per_home, args.limit)
    rows = emulate(*sizes, args.seeds[0], args.evaluations)
    if args.json:
        print(json.dumps({"rows": rows}))
        return 0
    for row in rows:
        seconds = f"simulated {row['simulated_s']:.3f} s  measured {row['measured_s']:.3f} s"
        print(f"{row['plan']:10} {seconds} ({row['off']:+.1%})")
    return 0


def _planned(args: Namespace) -> int:
    sizes, rows = replicas(args.nodes, args.stages), list[dict[str, Any]]()
    for seed in args.seeds:
        setting = swarm(seed, sizes, args.per_home * sizes[0], args.visits, args.limit)
        rows.append(measure(setting, seed, args.evaluations, args.picture if seed == args.seeds[0] else None))
    ratios = {key: exp(mean(log(row[key] / row["ours_s"]) for row in rows)) for key in (*COLUMNS, "bound_s")}
    never_worse = all(row["ours_s"] <= min(row["random_s"], row["greedy_s"], row["balanced_s"]) for row in rows)
    if args.json:
        print(json.dumps({"rows": rows, "over_ours": ratios, "never_worse": never_worse}))
        return 0 if never_worse else 1
    print(f"{args.nodes} nodes in stages of {sizes}, {args.visits} of {args.stages} stages, {args.limit} held at once")
    print(f"{'seconds per step, by seed':26}" + "".join(f"{row['seed']:8}" for row in rows) + "  over ours")
    for key, title in {**COLUMNS, "bound_s": "no plan is below"}.items():
        print(f"{title:26}" + "".join(f"{row[key]:8.3f}" for row in rows) + f"{ratios[key]:10.2f}x")
    print(f"{'search took, s':26}" + "".join(f"{row['search_s']:8.2f}" for row in rows))
    print(f"{'places took, s; bred ones':26}" + "".join(f"{row['places_s']:4.1f}/{row['bred_s']:.1f}" for row in rows))
    return 0 if never_worse else 1


def measure(setting: Setting, seed: int, evaluations: int, picture: str | None = None) -> dict[str, Any]:
    """One cluster: seconds of a step, the reduction of gradients included, in every way."""
    begin = perf_counter()
    stages = choose_places(setting, evaluations // 2, seed=seed)
    placed = perf_counter()
    bred = breed(setting, evaluations // 2, seed)
    bred_s = perf_counter() - placed
    ours, reduce_s = _checked(search(setting, stages, evaluations, seed=seed)), setting.reduction_s(stages)
    everything = without_skips(setting)
    whole_stages = choose_places(everything, evaluations // 2, seed=seed)
    whole = _checked(search(everything, whole_stages, evaluations, seed=seed))
    unlimited = replace(everything, limit=(setting.microbatches,) * setting.num_nodes)
    whole_reduce_s = setting.reduction_s(whole_stages)
    if picture:
        from trainsys.schedule.picture import draw

        title = f"{setting.num_nodes} nodes, {setting.visits} of {setting.num_stages} stages per microbatch"
        draw({"all stages": events_of(whole), "skipping": events_of(ours)}, picture, title)
    alone = {
        phase: search(setting, stages, evaluations, seed=seed, phases=[phase]).step_s + reduce_s
        for phase in ("conflicts", "anneal")
    }
    return {
        "seed": seed,
        "all_random_s": whole.starts["random"] + whole_reduce_s,
        "all_s": whole.step_s + whole_reduce_s,
        "all_unlimited_s": _found_s(unlimited, whole_stages, evaluations, seed),
        "random_s": ours.starts["random"] + reduce_s,
        "greedy_s": ours.starts["greedy"] + reduce_s,
        "balanced_s": min(s for name, s in ours.starts.items() if name != "random") + reduce_s,
        **{f"{phase}_s": s for phase, s in alone.items()},
        "ours_s": ours.step_s + reduce_s,
        "genetic_s": _found_s(setting, bred, evaluations, seed),
        "anywhere_s": _found_s(setting, any_places(setting, seed), evaluations, seed),
        "bound_s": bound_s(setting, stages) + reduce_s,
        "reduction_s": reduce_s,
        "places_s": placed - begin,
        "bred_s": bred_s,
        "search_s": ours.seconds,
        "cut": ours.cut,
        "paths": [" ".join(f"{stage}.{node}" for stage, node in path) for path in ours.visits],
    }


def _found_s(setting: Setting, stages: Stages, evaluations: int, seed: int) -> float:
    return search(setting, stages, evaluations, seed=seed).step_s + setting.reduction_s(stages)


def _checked(plan: SkipPlan) -> SkipPlan:
    """`plan`, if it keeps all limits and its schedule takes the time that it says."""
    check_paths(plan.setting, plan.stages, plan.paths, plan.orders)
    schedule = to_schedule(plan, per_node=True)
    verify(schedule)
    simulated = simulate(schedule, costs_of(plan, per_node=True)).step_s
    assert abs(simulated - plan.step_s) < 1e-9 * plan.step_s, (simulated, plan.step_s)
    return plan


def _trained(args: Namespace) -> int:
    from benchmarks._skip_train import compare

    rows = list[dict[str, Any]]()
    for seed in args.seeds[:1]:
        for row in compare(args.steps, seed=seed, sgd=args.sgd):
            rows.append(row)
            if not args.json:
                print(
                    f"{row['skipped']:4.0%} skipped, {row['paths']:8} {'scaled' if row['scaled'] else '':7} "
                    f"held-out loss {row['losses'][-1]:.3f} ({row['over_full']:+.3f}) in {row['seconds']:.0f} s",
                    flush=True,
                )
    if args.json:
        print(json.dumps({"rows": rows}))
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
