"""Why not that layout: the rule it breaks, the memory it lacks, or the parts of the step that it loses."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

from trainsys.config import RunConfig
from trainsys.planner.asked import PLACED, SIZE, said
from trainsys.planner.check import check_batch, check_names, check_product
from trainsys.planner.completions import GRID, completed, completions, fastest, sizes_of
from trainsys.planner.parts import step_parts
from trainsys.planner.plan import EQUAL, Plan
from trainsys.planner.predict import predict
from trainsys.planner.ranking import with_layout
from trainsys.planner.remedies import Remedy, illegal_for, peak_gib, remedies
from trainsys.planner.risk import oom_probability


@dataclass(frozen=True)
class Answer:
    """Why a layout is not the winner.

    Attributes:
        asked: what was named, in the notation of plans.
        layout: the best layout that has it; of those that do not fit the one that needs least; empty: none is legal.
        rule, knob: of an illegal one, what it breaks and what to set instead.
        over_gib: that it lacks.
        memory: GiB of its parts.
        winner: the best layout of all that have what is fixed, `among`; empty: none fits.
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
    among: str = ""

    @property
    def difference_s(self) -> dict[str, float]:
        return {name: seconds - self.winner_parts_s[name] for name, seconds in self.parts_s.items()}

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "difference_s": self.difference_s}


def why_not(
    config: RunConfig,
    asked: Mapping[str, Any],
    winner: Plan | None,
    num_ranks: int,
    any_microbatch: bool = False,
    fixed: Collection[str] = (),
) -> Answer:
    """Hold the best layout that has the keys of `asked` against `winner`; see `Answer`.

    Args:
        asked: as of `parse_asked`; what is missing is free, dp follows from the ranks.
        any_microbatch: search the microbatch size too, unless it is asked for.
        fixed: keys of ``config.parallel`` among whose layouts alone the winner was sought.
        winner: None where no layout fits; the answer is then that it is illegal or needs too much memory.

    Raises:
        ValueError: for a batch that the model cannot take.
    """
    own = {key: value for key, value in asked.items() if key not in (SIZE, PLACED)}
    sizes = (asked[SIZE],) if SIZE in asked else sizes_of(config, any_microbatch)
    check_batch(with_layout(config, config.parallel, sizes[0]) if SIZE not in asked else config)
    among = said({key: getattr(config.parallel, key) for key in fixed})
    empty = Answer("illegal", said(asked), winner.name(any_microbatch) if winner else "", among=among)
    even: dict[str, Any] = {"stage_layers": (), "stage_replicas": (), "devices": ()}
    named = with_layout(config, replace(config.parallel, **(even | own)), sizes[0])
    broken = _broken(named, own, num_ranks)
    if broken:
        return _illegal(empty, broken)
    best = fastest(named, own, num_ranks, sizes, PLACED in asked)
    if best:
        return _beaten(empty, best, winner, any_microbatch)
    if PLACED in asked and fastest(named, own, num_ranks, sizes, placed=False):
        return _illegal(empty, "no other place of the ranks makes such a layout faster; leave out placed")
    return _lacking(empty, named, own, winner, num_ranks, sizes, any_microbatch)


def _illegal(empty: Answer, error: str) -> Answer:
    rule, _, knob = error.partition("; ")
    return replace(empty, rule=rule, knob=knob)


def _beaten(empty: Answer, plan: Plan, winner: Plan | None, sized: bool) -> Answer:
    rival = winner or plan
    factor = plan.step_s / rival.step_s
    verdict: Literal["best", "tie", "slower"] = "slower" if factor > 1 + EQUAL else "tie"
    same = (plan.parallel, plan.microbatch_size) == (rival.parallel, rival.microbatch_size)
    return replace(
        empty,
        verdict="best" if same else verdict,
        layout=plan.name(sized),
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
    empty: Answer,
    named: RunConfig,
    asked: Mapping[str, Any],
    winner: Plan | None,
    num_ranks: int,
    sizes: Sequence[int],
    sized: bool,
) -> Answer:
    """The leanest layout that has what is asked, what it lacks, and what would help."""
    configs = [with_layout(named, named.parallel, size) for size in sizes]
    every = [(own, parallel) for own in configs for parallel in completions(own, asked, num_ranks)]
    reasons = [illegal_for(own, parallel) for own, parallel in every]
    legal = [layout for layout, reason in zip(every, reasons, strict=True) if not reason]
    if not legal:
        return _illegal(empty, next(iter(reasons), f"no layout on {num_ranks} ranks has that; name fewer degrees"))
    own, leanest = min(legal, key=lambda layout: peak_gib(*layout))
    plan = predict(own, leanest)
    over = plan.peak_gib - plan.limit_gib
    beaten = _beaten(empty, plan, winner, sized)
    return replace(beaten, verdict="memory", over_gib=over, remedies=remedies(own, leanest, sized))


def _broken(named: RunConfig, asked: Mapping[str, Any], num_ranks: int) -> str:
    """The rule that all layouts with `asked` break, with its advice; empty where there is a legal one."""
    if "stage_replicas" in asked:
        try:
            check_product(completed(named.parallel, {"dp": max(asked["stage_replicas"]), **asked}), num_ranks)
        except ValueError as error:
            return str(error)
    else:
        degrees = {axis: asked[axis] for axis in GRID if axis in asked}
        size = prod(degrees.values())
        free = [axis for axis in GRID if axis not in asked]
        if num_ranks % size or (not free and size != num_ranks):
            product = f"={size}" if len(degrees) > 1 else ""
            product_said = f"parallel.{'·'.join(degrees)}={'·'.join(map(str, degrees.values()))}{product}"
            verb = "does not divide" if free else "is not"
            ranks = f"the {num_ranks} rank{'s'[: num_ranks != 1]} of the cluster"
            return f"{product_said} {verb} {ranks}; {_degree_knob(degrees, num_ranks, free)}"
    try:
        check_batch(named)
        check_names(completed(named.parallel, asked))
    except ValueError as error:
        return str(error)
    reasons = [illegal_for(named, parallel) for parallel in completions(named, asked, num_ranks)]
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
