"""The plan of a step: paths and orders, the best found so far whenever the time is up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from random import Random
from time import perf_counter

from trainsys.planner.skip.agent import Map
from trainsys.planner.skip.check import Orders
from trainsys.planner.skip.conflict_search import settled
from trainsys.planner.skip.dispatch import NEVER, Order, Outcome, Work, dispatch
from trainsys.planner.skip.replan import Changes, Plan
from trainsys.planner.skip.setting import Paths, Setting, Stages
from trainsys.planner.skip.start import greedy_paths, random_paths

PHASES = ("conflicts", "anneal")
_SPREADS = (0.0, 0.5, 1.0, 2.0)
_CONFLICTS = 0.1  # of the evaluations, where annealing follows
_HOT, _COLD = 0.005, 0.0002  # temperatures, as shares of the step; fitted


@dataclass(frozen=True)
class SkipPlan:
    """Which microbatch goes where, and in which order every node works.

    Attributes:
        stages: nodes by stage.
        paths: nodes by microbatch.
        work: who does what when, by start.
        step_s: simulated, without the reduction of gradients.
        scores: ``(seconds of the best, evaluations so far)`` at every improvement.
        starts: simulated seconds of what the search began with, by name.
        evaluations: simulations made.
        seconds: that the search took.
        cut: whether the seconds ended it, or its first phase; the same seed may then find another plan.
    """

    setting: Setting
    stages: Stages
    paths: Paths
    work: tuple[Work, ...]
    step_s: float
    scores: tuple[tuple[float, int], ...]
    starts: dict[str, float]
    evaluations: int
    seconds: float
    cut: bool

    @property
    def orders(self) -> Orders:
        """By node: (microbatch, place in its chain; see dispatch.Work), in order."""
        orders: list[list[tuple[int, int]]] = [[] for _ in range(self.setting.num_nodes)]
        for work in self.work:
            orders[work.node].append((work.microbatch, work.place))
        return tuple(map(tuple, orders))

    @property
    def visits(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """By microbatch: (stage, node) in the order visited."""
        stage_of = {node: stage for stage, nodes in enumerate(self.stages) for node in nodes}
        return tuple(tuple((stage_of[node], node) for node in path) for path in self.paths)


def search(
    setting: Setting,
    stages: Stages,
    evaluations: int = 4000,
    seconds: float = 20.0,
    seed: int = 0,
    phases: Sequence[str] = PHASES,
) -> SkipPlan:
    """The best plan found: never slower than random skipping or any greedy one, which it begins with.

    Args:
        stages: nodes by stage (places.py).
        evaluations: simulations; the same number and seed find the same plan. The starts are scored whatever it is.
        seconds: ends the search early.
        phases: of `PHASES`, after the starts.

    Raises:
        ValueError: no evaluations, no time, unknown phases, or limits that leave no paths.
    """
    if evaluations < 1 or not seconds > 0:
        raise ValueError(f"evaluations={evaluations} must be at least 1 and seconds={seconds:g} positive")
    if set(phases) - set(PHASES):
        raise ValueError(f"phases={list(phases)} must be some of {list(PHASES)}")
    run = _Search(Map(setting, stages), evaluations, seconds, seed)
    run.begin()
    if "conflicts" in phases:
        run.conflicts(_CONFLICTS if "anneal" in phases else 1.0)
    if "anneal" in phases:
        run.anneal()
    return run.plan()


class _Search:
    def __init__(self, way_map: Map, evaluations: int, seconds: float, seed: int) -> None:
        self.map, self.setting, self.most, self.seed = way_map, way_map.setting, evaluations, seed
        self.started = perf_counter()
        self.limit_s = seconds
        self.made = 0
        self.hurried = False
        self.scores: list[tuple[float, int]] = []
        self.starts: dict[str, float] = {}
        self.best: tuple[Plan, Outcome] | None = None
        self.dice = Random(seed)

    @property
    def over(self) -> bool:
        return self.made >= self.most or perf_counter() - self.started > self.limit_s

    def score(self, plan: Plan) -> Outcome:
        outcome = dispatch(self.setting, *plan)
        self.made += 1
        if self.best is None or outcome.step_s < self.best[1].step_s:
            self.best = plan, outcome
            self.scores.append((outcome.step_s, self.made))
        return outcome

    def begin(self) -> None:
        """What the result will be measured against; made whatever the budget."""
        m = self.setting.microbatches
        in_turn = tuple(range(m))
        paths = random_paths(self.setting, self.map.stages, self.seed)
        self.starts["random"] = self.score((paths, Order(in_turn))).step_s
        for spread in _SPREADS:
            paths = greedy_paths(self.setting, self.map.stages, spread, self.seed)
            name = f"greedy, spread {spread:g}" if spread else "greedy"
            self.starts[name] = self.score((paths, Order(in_turn))).step_s

    def conflicts(self, share: float) -> None:
        """`share` of the budget, for what the conflict-based search finds, the backward first or not. A branch that
        it offers nothing from counts as an evaluation."""
        until = self.made + self.most * share
        until_s = self.started + self.limit_s * share
        for offer in settled(self.map, self.seed):
            if offer is not None:
                for early in (True, False):
                    self.score((offer[0], Order(offer[1], early)))
            self.made += offer is None
            if self.over or self.made >= until or perf_counter() > until_s:
                self.hurried |= perf_counter() > until_s
                return

    def anneal(self) -> None:
        """From the best so far; colder with every evaluation."""
        assert self.best is not None
        changes = Changes(self.map, self.dice)
        (plan, outcome), begun = self.best, self.made
        idle = 0
        while not self.over and idle < 1000:
            spent = (self.made - begun) / max(1, self.most - begun)
            changed = changes.change(plan, outcome)
            if changed is None or changed == plan:
                idle += 1
                continue
            idle = 0
            tried = self.score(changed)
            heat = self.best[1].step_s * _HOT * (_COLD / _HOT) ** spent
            worse = tried.step_s - outcome.step_s
            if worse <= 0 or (tried.step_s < NEVER and self.dice.random() < exp(-worse / heat)):
                plan, outcome = changed, tried

    def plan(self) -> SkipPlan:
        assert self.best is not None
        (paths, _), outcome = self.best
        return SkipPlan(
            self.setting,
            self.map.stages,
            paths,
            outcome.work,
            outcome.step_s,
            tuple(self.scores),
            self.starts,
            self.made,
            perf_counter() - self.started,
            self.hurried or (self.made < self.most and perf_counter() - self.started > self.limit_s),
        )
