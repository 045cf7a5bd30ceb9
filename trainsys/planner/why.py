"""Why not that layout: the rule it breaks, the memory it lacks, or the parts of the step that it loses."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Any, Literal

from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.check import check_batch, check_names
from trainsys.planner.parts import step_parts
from trainsys.planner.plan import Plan
from trainsys.planner.predict import predict
from trainsys.planner.remedies import Remedy, illegal_for, peak_gib, remedies
from trainsys.planner.risk import oom_probability
from trainsys.planner.search import search

_GRID = ("dp", "cp", "tp", "pp")
_TIE = 1.002


@dataclass(frozen=True)
class Answer:
    """Why a layout is not the winner.

    Attributes:
        asked: what was named, in the notation of plans.
        layout: the best layout that has it; of those that do not fit the one that needs least; empty: none is legal.
        rule, knob: of an illegal one, what it breaks and what to set instead.
        over_gib: that it lacks.
        memory: GiB of its parts.
        winner: the best layout of all; empty: none fits.
        factor: its step over the winner's.
        difference_s: seconds by part of the step, its minus the winner's; the sum is the difference of the steps.
    """

    verdict: Literal["best", "tie", "slower", "memory", "illegal"]
    asked: str
    winner: str
    layout: str = ""
    rule: str = ""
    knob: str = ""
    step_s: float = 0.0
    winner_step_s: float = 0.0
    factor: float = 0.0
    peak_gib: float = 0.0
    limit_gib: float = 0.0
    over_gib: float = 0.0
    oom_probability: float = 0.0
    memory: Mapping[str, float] = field(default_factory=dict)
    remedies: tuple[Remedy, ...] = ()
    parts_s: Mapping[str, float] = field(default_factory=dict)
    winner_parts_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def difference_s(self) -> dict[str, float]:
        return {name: seconds - self.winner_parts_s[name] for name, seconds in self.parts_s.items()}

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "difference_s": self.difference_s}


def why_not(
    config: RunConfig, asked: Mapping[str, Any], winner: Plan | None, num_ranks: int, any_microbatch: bool = False
) -> Answer:
    """Hold the best layout that has the keys of `asked` against `winner`; see `Answer`.

    Args:
        asked: keys of ``config.parallel`` and their values; what is missing is free, dp follows from the ranks.
        any_microbatch: search the microbatch size too.
        winner: None where no layout fits; the answer is then that it is illegal or needs too much memory.

    Raises:
        ValueError: for a batch that the model cannot take.
    """
    check_batch(config)
    named = replace(config, parallel=replace(config.parallel, **asked, stage_layers=(), stage_replicas=()))
    words = " ".join(f"parallel.{key}={_text(value)}" for key, value in asked.items())
    broken = _broken(named, asked, num_ranks)
    if broken:
        return _illegal(broken, winner, words)
    try:
        best = search(named, num_ranks, list(asked), keep=1, any_microbatch=any_microbatch).plans[0]
    except ValueError as error:  # none of them fits, or none is among those searched
        return _lacking(named, asked, winner, words, num_ranks, str(error))
    return _beaten(best, winner, words)


def _illegal(error: str, winner: Plan | None, words: str) -> Answer:
    rule, _, knob = error.partition("; ")
    return Answer("illegal", words, winner.layout if winner else "", rule=rule, knob=knob)


def _beaten(plan: Plan, winner: Plan | None, words: str) -> Answer:
    rival = winner or plan
    factor = plan.step_s / rival.step_s
    verdict: Literal["best", "tie", "slower"] = "slower" if factor > _TIE else "tie"
    return Answer(
        "best" if plan.layout == rival.layout else verdict,
        words,
        winner.layout if winner else "",
        layout=plan.layout,
        step_s=plan.step_s,
        winner_step_s=winner.step_s if winner else 0.0,
        factor=factor if winner else 0.0,
        peak_gib=plan.peak_gib,
        limit_gib=plan.limit_gib,
        oom_probability=oom_probability(plan.peak_gib, plan.limit_gib),
        memory=dataclasses.asdict(plan.memory),
        parts_s=step_parts(plan),
        winner_parts_s=step_parts(rival),
    )


def _lacking(
    named: RunConfig, asked: Mapping[str, Any], winner: Plan | None, words: str, num_ranks: int, error: str
) -> Answer:
    """The leanest layout that has what is asked, what it lacks, and what would help."""
    legal = [p for p in _completions(named, asked, num_ranks) if not illegal_for(named, p)]
    if not legal:
        return _illegal(error, winner, words)
    leanest = min(legal, key=lambda parallel: peak_gib(named, parallel))
    plan = predict(named, leanest)
    beaten = _beaten(plan, winner, words)
    over = plan.peak_gib - plan.limit_gib
    return replace(beaten, verdict="memory", over_gib=over, remedies=remedies(named, leanest))


def _broken(named: RunConfig, asked: Mapping[str, Any], num_ranks: int) -> str:
    """The rule that all layouts with `asked` break, with its advice; empty where there is a legal one."""
    degrees = {axis: asked[axis] for axis in _GRID if axis in asked}
    size = prod(degrees.values())
    free = [axis for axis in _GRID if axis not in asked]
    if size < 1 or num_ranks % size or (not free and size != num_ranks):
        said = f"parallel.{'·'.join(degrees)}={'·'.join(map(str, degrees.values()))}" + (
            f"={size}" if len(degrees) > 1 else ""
        )
        if size < 1:
            return f"{said}: a degree must be at least 1"
        verb = "does not divide" if free else "is not"
        return f"{said} {verb} the {num_ranks} ranks of the cluster; {_degree_knob(degrees, num_ranks, free)}"
    try:
        check_names(_with(named.parallel, asked))
    except ValueError as error:
        return str(error)
    reasons = [illegal_for(named, parallel) for parallel in _completions(named, asked, num_ranks)]
    return reasons[0] if reasons and all(reasons) else ""


def _degree_knob(degrees: Mapping[str, int], num_ranks: int, free: Collection[str]) -> str:
    """One degree that goes into the ranks with the others named: dp, or where it is not named the last."""
    axis = "dp" if "dp" in degrees else list(degrees)[-1]
    others = prod(degree for name, degree in degrees.items() if name != axis)
    if num_ranks % others:
        return f"name degrees whose product {'divides' if free else 'is'} {num_ranks}"
    most = num_ranks // others
    fitting = [n for n in range(1, most + 1) if most % n == 0]
    value = min(fitting, key=lambda n: abs(n - degrees[axis])) if free else most
    return f"set parallel.{axis}={value}"


def _completions(named: RunConfig, asked: Mapping[str, Any], num_ranks: int) -> Iterator[ParallelConfig]:
    """Layouts that have `asked`, plain ones first: degrees not named are 1 but for dp, or as dp leaves them."""
    every = product(*(_divisors(num_ranks, asked.get(axis)) for axis in _GRID))
    grids = [grid for grid in every if prod(grid) == num_ranks and (grid[1] == 1 or "cp" in asked)]
    for grid in sorted(grids, key=lambda g: -g[0]):
        degrees = dict(zip(_GRID, grid, strict=True))
        replicas = degrees["dp"] * degrees["cp"]
        choices = {
            "zero": range(1 if replicas == 1 else 2 if named.parallel.reduction == "fast" else 4),
            "recompute": ("none", "full"),
            "offload": ("none", "activations"),
            "sequence_parallel": (False, True) if degrees["tp"] > 1 else (False,),
            "ep": [n for n in range(1, max(named.model.num_experts, 1) + 1) if replicas % n == 0],
        }  # fmt: skip
        keys = {key: (asked[key],) if key in asked else values for key, values in choices.items()}
        for values in product(*keys.values()):
            yield _with(named.parallel, {**asked, **degrees, **dict(zip(keys, values, strict=True))})


def _with(parallel: ParallelConfig, asked: Mapping[str, Any]) -> ParallelConfig:
    """`asked`, with 1f1b and one run of layers where it does not say otherwise."""
    vp = asked.get("vp", 2 if asked.get("schedule") == "interleaved" else 1)
    schedule = asked.get("schedule", "interleaved" if vp > 1 else "1f1b")
    plain = ParallelConfig(order=parallel.order, reduction=parallel.reduction)
    return replace(plain, **{**asked, "vp": vp, "schedule": schedule})


def _divisors(number: int, given: int | None) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0] if given is None else [given]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
