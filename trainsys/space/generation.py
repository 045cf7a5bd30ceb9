"""Train and generate with the same weights on the same ranks: HybridFlow's 3D-HybridEngine as two layouts.

Sheng et al. 2024 (HybridFlow, arXiv:2409.19256), section 5: training uses p·t·d (pipeline, tensor, data parallel),
generation p_g·t_g with d_g = (p·t)/(p_g·t_g) replicas inside each training replica. Where consecutive ranks form the
generation groups (HybridFlow-V), some rank's training shard lies outside of its generation shard and is a second copy.
The engine takes ranks at *intervals*: members of a tensor group lie t/t_g apart, those of a pipeline p/p_g stages. The
generation shard of a rank then is the union of the training shards of its micro data-parallel group, its own included:
one all-gather in each such group, and nothing is held twice. With a model of M bytes, per rank:

=============  ==============================  =================  ==============
               DeepSpeed-Chat                  HybridFlow-V       HybridFlow
=============  ==============================  =================  ==============
received       (tpd - 1)/(tpd) · M             (tp - 1)/(tp) · M  (tp - t_g p_g)/(t_g p_g t p) · M
peak weights   M                               M                  M/(t_g p_g)
redundant      M/(tpd)                         M/(tp)             0
=============  ==============================  =================  ==============
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from trainsys.space.layout import Layout
from trainsys.space.seats import default_seats
from trainsys.space.stage import Stage, Team


@dataclass(frozen=True)
class Generation:
    """Where the weights live while tokens are generated.

    Attributes:
        source: the training layout as its weights see it: on every replica, without mirrors.
        layout: the generation layout. `transition` from `source` to it is the switch.
        replica: rank -> the generation replica it serves, ``0 … d·d_g - 1``.
        gather: rank -> its micro data-parallel group: the ranks that hold its generation shard between them.
    """

    source: Layout
    layout: Layout
    replica: dict[int, int]
    gather: dict[int, tuple[int, ...]]


def generation(train: Layout, tp: int, pp: int) -> Generation:
    """Generation groups such that each rank's training shard is part of its generation shard.

    Args:
        train: a layout with the same number of replicas in every stage.
        tp: tensor-parallel degree of generation, a divisor of training's.
        pp: stages of generation, a divisor of training's.

    Raises:
        ValueError: for degrees that do not divide, or ragged replicas.
    """
    for name, ours, theirs in (("tp", tp, train.tp), ("pp", pp, train.pp)):
        if ours < 1 or theirs % ours:
            legal = ", ".join(str(n) for n in range(1, theirs + 1) if theirs % n == 0)
            raise ValueError(
                f"generation {name}={ours} does not divide the training {name}={theirs}; set {name}={legal}"
            )
    if train.vp > 1 or train.cp > 1 or train.ep > 1:
        raise ValueError(f"generation groups are known for dp, tp and pp only, got {train}; set the others to 1")
    if not train.uniform:
        raise ValueError(
            f"generation groups need equally many replicas in every stage, got {train.replicas}; set parallel.dp"
        )
    apart_t, apart_p = train.tp // tp, train.pp // pp
    replicas: dict[int, int] = {}
    gather: dict[int, tuple[int, ...]] = {}
    stages = []
    for s in range(pp):
        merged = train.stages[s * apart_p : (s + 1) * apart_p]
        teams: list[Team] = []
        for k in range(train.replicas[0]):
            for stage in merged:
                for b in range(apart_t):
                    team = tuple(stage.teams[k][j * apart_t + b] for j in range(tp))
                    replicas |= dict.fromkeys(team, len(teams))
                    teams.append(team)
            own = teams[-apart_p * apart_t :]
            for group in zip(*own, strict=True):
                gather |= dict.fromkeys(group, group)
        span = (merged[0].spans[0][0], merged[-1].spans[0][1])
        stages.append(Stage((span,), tuple(teams), default_seats(len(teams))))
    return Generation(replace(train, zero=0, mirrors=()), Layout(tuple(stages), tp, 0, train.chunk), replicas, gather)


def received_share(train_tp: int, train_pp: int, tp: int, pp: int) -> Fraction:
    """Share of the model that a rank receives in the switch, (tp - t_g p_g)/(t_g p_g t p) (section 5 there).

    Exact where every tensor is split over tensor parallelism and the stages weigh the same.
    """
    return Fraction(1, tp * pp) - Fraction(1, train_tp * train_pp)
