"""Throughput after 1, 2 and 4 ranks of 96 have failed, by four ways to go on: simulated.

A pipeline of 12 stages in 8 replicas, 48 layers, 384 microbatches a step, communication free; the global batch stays
what it was. Every way is simulated action by action with its schedule:

* ours: layers move so that no stage has more per replica than need be (minimax), ranks change stages, backward split;
* ReCycle (2405.14009): layers stay; the other replicas of the stage take its microbatches; backward split for bubbles;
* Oobleck (2309.08125): the pipeline goes on with a stage less, its layers re-split; each takes what suits its speed;
* TorchFT: the whole replica stops, the others take its microbatches.

ElasWave (2510.00606) reports 1.35 times ReCycle and 1.60 times TorchFT, measured on 96 NPUs; they are printed beside.

    trainsys bench survivors [--failures 1,2,4] [--together] [--json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache

from trainsys.cli.arguments import Parser, screen, whole_numbers
from trainsys.models.geometry import split_layers
from trainsys.schedule.costs import Costs
from trainsys.schedule.generators import generate
from trainsys.schedule.problem import Problem
from trainsys.schedule.routes import Routes
from trainsys.schedule.simulate import simulate

STAGES, REPLICAS, LAYERS, MICROBATCHES = 12, 8, 48, 384
PUBLISHED = {"ReCycle": 1.35, "TorchFT": 1.60}
Lost = tuple[tuple[int, int], ...]  # (stage, replica) of each failed rank


@lru_cache(maxsize=256)
def step_s(layers: tuple[int, ...], replicas: tuple[int, ...], microbatches: int, schedule: str) -> float:
    """Of one step, in units of a layer's forward; I and W take as long as F."""
    costs = Costs([float(n) for n in layers], [2.0 * n for n in layers], i_s=list(layers), w_s=list(layers))
    problem = Problem(Routes.balanced(microbatches, replicas), costs=costs)
    return simulate(generate(schedule, problem), costs).step_s


def ours(lost: Lost) -> float:
    """The best of few: every number of stages near the present one, its ranks and layers spread by minimax."""
    left = STAGES * REPLICAS - len(lost)
    survivors = tuple(REPLICAS - sum(stage == s for s, _ in lost) for stage in range(STAGES))
    found = [survivors]
    for stages in range(STAGES - 2, STAGES + 3):
        found.append(tuple(left // stages + (i < left % stages) for i in range(stages)))
    times = [step_s(minimax(replicas), replicas, MICROBATCHES, "zb1p") for replicas in found]
    return min(times)


def minimax(replicas: Sequence[int]) -> tuple[int, ...]:
    """Layers of each stage such that the most per replica is least: given one by one to the stage that stays lowest."""
    layers = [1] * len(replicas)
    for _ in range(LAYERS - len(replicas)):
        best = min(range(len(replicas)), key=lambda s: ((layers[s] + 1) / replicas[s], s))
        layers[best] += 1
    return tuple(layers)


def recycle(lost: Lost) -> float:
    replicas = tuple(REPLICAS - sum(stage == s for s, _ in lost) for stage in range(STAGES))
    return step_s(tuple(split_layers(LAYERS, STAGES)), replicas, MICROBATCHES, "zb1p")


def oobleck(lost: Lost) -> float:
    """Pipelines of their own: microbatches are dealt so that the slowest of them ends first."""
    shorter = [sum(replica == r for _, r in lost) for replica in range(REPLICAS)]
    shares = [1] * REPLICAS

    def time_of(replica: int, share: int) -> float:
        stages = STAGES - shorter[replica]
        return step_s(tuple(split_layers(LAYERS, stages)), (1,) * stages, share, "1f1b")

    times = [time_of(r, 1) for r in range(REPLICAS)]
    for _ in range(MICROBATCHES - REPLICAS):
        replica = min(range(REPLICAS), key=lambda r: times[r])
        shares[replica] += 1
        times[replica] = time_of(replica, shares[replica])
    return max(times)


def torchft(lost: Lost) -> float:
    left = REPLICAS - len({replica for _, replica in lost})
    most = -(-MICROBATCHES // left)
    return step_s(tuple(split_layers(LAYERS, STAGES)), (1,) * STAGES, most, "1f1b")


WAYS: dict[str, Callable[[Lost], float]] = {"ours": ours, "ReCycle": recycle, "Oobleck": oobleck, "TorchFT": torchft}


def failed(count: int, together: bool) -> Lost:
    """Ranks spread over stages and replicas, or all of one stage."""
    return tuple((STAGES // 2 if together else (5 + 3 * i) % STAGES, i) for i in range(count))


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench survivors", __doc__.splitlines()[0], "  trainsys bench survivors --together")
    parser.add_argument("--failures", default="1,2,4", metavar="A,B", help="ranks that have failed")
    parser.add_argument("--together", action="store_true", help="all in one stage")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    counts = whole_numbers("--failures", args.failures)
    if not all(count < REPLICAS for count in counts):
        raise ValueError(
            f"--failures {args.failures} must be at most {REPLICAS - 1} each: every one strikes another replica"
        )
    whole = {way: step_s(tuple(split_layers(LAYERS, STAGES)), (REPLICAS,) * STAGES, MICROBATCHES, schedule)
             for way, schedule in (("ours", "zb1p"), ("1f1b", "1f1b"))}  # fmt: skip
    rows = []
    for count in counts:
        lost = failed(count, args.together)
        seconds = {name: way(lost) for name, way in WAYS.items()}
        rows += [
            {"failures": count, "way": name, "throughput": whole["ours"] / s, "ours_over": s / seconds["ours"]}
            for name, s in seconds.items()
        ]
    said = {"simulated": True, "together": args.together, "published": PUBLISHED, "rows": rows}
    said["before_1f1b"] = whole["ours"] / whole["1f1b"]
    if args.json:
        print(json.dumps(said))
    else:
        show(rows, args.together, said["before_1f1b"])
    return 0


def show(rows: Sequence[dict[str, object]], together: bool, before: object) -> None:
    from rich.table import Table

    where = "one stage" if together else "different stages"
    table = Table(title=f"After failures in {where}, of the throughput before with a split backward: SIMULATED")
    for column in ("failed", "way", "throughput", "ours over it", "published"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        published = PUBLISHED.get(str(row["way"]))
        cells = (f"{row['throughput']:.3f}", f"{row['ours_over']:.2f}", f"{published:.2f}" if published else "")
        table.add_row(str(row["failures"]), str(row["way"]), *cells)
    screen().print(table)
    screen().print(f"1F1B before any failure: {before:.3f}. ElasWave's published ratios are its own over these.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
