"""What a generator is asked for: who runs which microbatch where, what it costs, and how much may be kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from trainsys.schedule.costs import Costs
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import stage_major

BARRIERS = {
    "ends": 0,
    "one_barrier": 1,
    "two_barriers": 2,
}  # between F and B of the last stage, by place of the vocabulary


@dataclass(frozen=True)
class Problem:
    """One step to be scheduled.

    Attributes:
        routes: which replica of each stage runs each microbatch; under vp every run of layers is a stage.
        vp: stages on each lane.
        folded: they lie in a V rather than in a loop (space/runs.py).
        costs: of the actions; those that a generator does not ask for do not matter to it.
        cap: most microbatches whose activations a lane may keep, a microbatch counting 1 when it is kept for all vp
            stages of the lane; 0: what the schedule needs by itself.
        vocabulary: where the vocabulary is: on the first and last stage, or on all lanes with so many `BARRIERS`.
    """

    routes: Routes
    vp: int = 1
    folded: bool = False
    costs: Costs | None = None
    cap: float = 0.0
    vocabulary: str = "ends"

    @property
    def depth(self) -> int:
        """P, lanes of one pipeline."""
        return self.routes.num_stages // self.vp

    @cached_property
    def placement(self) -> dict[tuple[int, int], int]:
        """(stage, replica) -> lane."""
        return stage_major(self.routes.replicas, self.vp, self.folded)

    @cached_property
    def seconds(self) -> Costs:
        """The costs, or F = I = W = 1/vp for every stage."""
        if self.costs is not None:
            return self.costs
        one = [1 / self.vp] * self.routes.num_stages
        return Costs(one, [2 * s for s in one], i_s=one, w_s=one)
