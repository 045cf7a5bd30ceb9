"""Make layouts: from a configured mesh, and from an older layout when ranks have come or gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, product

from trainsys.config import ParallelConfig
from trainsys.space.layout import Layout
from trainsys.space.mirrors import mirrors
from trainsys.space.runs import is_folded, runs_of
from trainsys.space.seats import default_seats, reseat
from trainsys.space.stage import Stage, Team
from trainsys.space.tensor import EMBED
from trainsys.space.vocabulary import Span, stage_vocabulary

ORDER = ("tp", "cp", "pp", "dp")  # fastest first: replicas of a stage lie far apart


def stage_spans(layers: Sequence[int], vp: int = 1, folded: bool = False) -> list[tuple[tuple[int, int], ...]]:
    """Block intervals of each stage; the embedding joins the first, norm and head the last.

    Args:
        layers: layers of each run in the order of the model.
        folded: see space/runs.py.
    """
    ends = list(accumulate(layers))
    spans = [(stop - n, stop) for n, stop in zip(layers, ends, strict=True)]
    spans[0] = (EMBED, spans[0][1])
    spans[-1] = (spans[-1][0], ends[-1] + 1)
    count = len(layers) // vp
    return [tuple(spans[run] for run in runs_of(stage, count, vp, folded)) for stage in range(count)]


def build_layout(
    parallel: ParallelConfig, layers: Sequence[int], ranks: Sequence[int], chunk: int, node_of: Callable[[int], int],
    vocab_parts: int = 1, tolerate: int = 1,
) -> Layout:  # fmt: skip
    """Place a mesh on `ranks`, axis after axis in the order that ``parallel.order`` names.

    Args:
        parallel: degrees; ``stage_replicas`` gives each stage its own number of replicas, ``devices`` each place of
            the mesh its own of `ranks`.
        layers: transformer layers per stage, under vp per run of layers.
        ranks: at least the ranks the mesh needs, node-major.
        chunk: elements per piece.
        node_of: node of a rank, for choosing mirrors.
        vocab_parts: of the model, which all stages share out unless ``parallel.vocabulary`` leaves them at the ends.
        tolerate: ranks that may fail at once: every piece has so many holders more than one, as far as there are ranks.

    Raises:
        ValueError: when there are too few ranks, or too few replicas for ep, or ``devices`` are not of the mesh.
    """
    spans = stage_spans(layers, parallel.vp, is_folded(parallel))
    replicas = _replicas(parallel, len(spans))
    _check_enough(sum(replicas) * parallel.cp * parallel.tp, ranks)
    if parallel.devices:
        check_devices(parallel.devices, sum(replicas) * parallel.cp * parallel.tp, len(ranks))
        ranks = [ranks[i] for i in parallel.devices]
    teams = _placed(parallel, replicas, ranks)
    stages = tuple(
        Stage(
            own,
            tuple(t),
            default_seats(len(t)),
            expert_seats([i % parallel.ep for i in range(len(t))], parallel.ep),
            words,
        )
        for own, t, words in zip(spans, teams, _vocabulary(parallel, layers, vocab_parts), strict=True)
    )
    used = [r for t in teams for m in t for r in m]
    return Layout(stages, parallel.tp, parallel.zero, chunk, mirrors(used, node_of, tolerate), parallel.cp)


def succeed(
    old: Layout, parallel: ParallelConfig, layers: Sequence[int], alive: Sequence[int], node_of: Callable[[int], int],
    vocab_parts: int = 1, tolerate: int = 1,
) -> Layout:  # fmt: skip
    """The layout after a change of membership, with as many teams as possible left where they are.

    A team stays at its stage when all of its ranks are alive, tp is unchanged and the stage still wants it; the other
    ranks form new teams. Where every stage keeps its layers, seats are edited so that the fewest pieces move, and a
    team that stays keeps its experts unless its class has too many teams now.

    Raises:
        ValueError: when there are too few ranks, or too few replicas for ep.
    """
    spans = stage_spans(layers, parallel.vp, is_folded(parallel))
    wanted = [n * parallel.cp for n in _replicas(parallel, len(spans))]
    _check_enough(sum(wanted) * parallel.tp, alive)
    vocabulary = _vocabulary(parallel, layers, vocab_parts)
    blocks = [own + words for own, words in zip(spans, vocabulary, strict=True)]
    same_blocks = [s.intervals for s in old.stages] == blocks and parallel.tp == old.tp
    alive_set = set(alive)
    kept: list[dict[int, Team]] = [{} for _ in spans]  # old number in the stage -> team
    for s in range(min(len(spans), old.pp) if parallel.tp == old.tp else 0):
        for number, team in enumerate(old.stages[s].teams):
            if alive_set.issuperset(team) and len(kept[s]) < wanted[s]:
                kept[s][number] = team
    used = {r for stage in kept for team in stage.values() for r in team}
    fresh = iter(_teams([r for r in alive if r not in used], parallel.tp))
    stages = []
    for s, own in enumerate(spans):
        teams = [*kept[s].values()]
        teams += [next(fresh) for _ in range(wanted[s] - len(teams))]
        moved = {number: i for i, number in enumerate(kept[s])}
        if same_blocks:
            seats, experts = _edited(old.stages[s], moved, len(teams), parallel.ep)
        else:
            seats = default_seats(len(teams))
            experts = expert_seats([i % parallel.ep for i in range(len(teams))], parallel.ep)
        stages.append(Stage(own, tuple(teams), seats, experts, vocabulary[s]))
    ranks = [r for stage in stages for team in stage.teams for r in team]
    return Layout(tuple(stages), parallel.tp, parallel.zero, old.chunk, mirrors(ranks, node_of, tolerate), parallel.cp)


def expert_seats(classes: Sequence[int], ep: int) -> tuple[tuple[int, ...], ...]:
    """The seats of each class among its teams; none for a single class. Raises ValueError for one without a team."""
    if ep == 1:
        return ()
    if len(set(classes)) < ep:
        raise ValueError(
            f"parallel.ep={ep} needs {ep} replicas of every stage, one has {len(classes)}; set parallel.ep lower"
        )
    return tuple(tuple(i for i, e in enumerate(classes) if e == own) for own in range(ep))


def _edited(
    old: Stage, moved: Mapping[int, int], num_teams: int, ep: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Seats and experts of a stage that keeps its layers and some of its teams.

    Args:
        moved: old number -> new number of the teams that stay.
    """
    seats = reseat(old.seats, moved, num_teams)
    if ep != old.ep or ep == 1:
        return seats, expert_seats([i % ep for i in range(num_teams)], ep)
    room = [num_teams // ep + (e < num_teams % ep) for e in range(ep)]
    classes: list[int | None] = [None] * num_teams
    for number, i in moved.items():
        e = old.classes[number]
        if room[e]:
            classes[i] = e
            room[e] -= 1
    rest = iter([e for e in range(ep) for _ in range(room[e])])
    whole = [next(rest) if e is None else e for e in classes]
    tables = []
    for own, plain in enumerate(expert_seats(whole, ep)):
        staying = {n: plain.index(i) for n, i in moved.items() if old.classes[n] == own and i in plain}
        tables.append(tuple(plain[i] for i in reseat(old.expert_seats[own], staying, len(plain))))
    return seats, tuple(tables)


def _vocabulary(parallel: ParallelConfig, layers: Sequence[int], vocab_parts: int) -> list[tuple[Span, ...]]:
    """The parts of the vocabulary of each stage."""
    pp = len(layers) // parallel.vp
    if parallel.vocabulary == "ends":
        return [()] * pp
    return [stage_vocabulary(sum(layers), vocab_parts, pp, stage) for stage in range(pp)]


def _replicas(parallel: ParallelConfig, stages: int) -> tuple[int, ...]:
    return tuple(parallel.stage_replicas) or (parallel.dp,) * stages


def _check_enough(need: int, ranks: Sequence[int]) -> None:
    if need > len(ranks):
        raise ValueError(f"the layout needs {need} ranks but only {len(ranks)} are there; set parallel.dp lower")


def check_devices(devices: Sequence[int], need: int, num_ranks: int) -> None:
    """Whether `devices` name, each once, a rank of `num_ranks` for each of `need` places. Raises ValueError."""
    if len(devices) != need:
        raise ValueError(
            f"parallel.devices names {len(devices)} rank{'s'[: len(devices) != 1]} but the layout has {need} places; "
            "name one for each, or leave parallel.devices empty"
        )
    wrong = next((r for i, r in enumerate(devices) if not 0 <= r < num_ranks or r in devices[:i]), None)
    if wrong is not None:
        why = f"but there are only ranks 0 to {num_ranks - 1}" if not 0 <= wrong < num_ranks else "twice"
        raise ValueError(f"parallel.devices names rank {wrong} {why}; name each once, or leave parallel.devices empty")


def _placed(parallel: ParallelConfig, replicas: Sequence[int], ranks: Sequence[int]) -> list[list[Team]]:
    """The teams of each stage. Where stages have fewer replicas than others, the later places close up."""
    sizes = {"tp": parallel.tp, "cp": parallel.cp, "pp": len(replicas), "dp": max(replicas)}
    order = axis_order(parallel)
    fresh = iter(ranks)
    places: dict[tuple[int, ...], int] = {}  # (stage, replica, cp index, tp index) -> rank
    for at in product(*(range(sizes[axis]) for axis in reversed(order))):
        place = dict(zip(reversed(order), at, strict=True))
        if place["dp"] < replicas[place["pp"]]:
            places[place["pp"], place["dp"], place["cp"], place["tp"]] = next(fresh)
    return [
        [
            tuple(places[s, replica, c, t] for t in range(parallel.tp))
            for replica in range(count)
            for c in range(parallel.cp)
        ]
        for s, count in enumerate(replicas)
    ]


def axis_order(parallel: ParallelConfig) -> tuple[str, ...]:
    """The mesh's axes, fastest first. Raises ValueError unless each is named once."""
    order = tuple(parallel.order.split(","))
    if sorted(order) != sorted(ORDER):
        raise ValueError(f"parallel.order={parallel.order} must name each of {','.join(ORDER)} once, fastest first")
    return order


def _teams(ranks: Sequence[int], tp: int) -> list[Team]:
    return [tuple(ranks[i : i + tp]) for i in range(0, len(ranks) - tp + 1, tp)]
