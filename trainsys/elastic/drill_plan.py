"""The faults that a config asks for, checked against what can happen in it."""

from __future__ import annotations

from collections.abc import Sequence

from trainsys.config import RunConfig
from trainsys.elastic.faults import NEMESES, STEP_PHASES, FaultEvent, parse_faults, random_kills
from trainsys.elastic.faults.event import IN_A_CHANGE
from trainsys.elastic.faults.random_storm import random_storm
from trainsys.elastic.faults.trace import read_trace


def planned_faults(config: RunConfig) -> tuple[FaultEvent, ...]:
    """The faults that ``config.faults`` asks for by step, in phases that occur in ``config.parallel``.

    Raises:
        ValueError: one line, for a schedule that cannot be or a phase that never comes.
    """
    faults = config.faults
    check_source(config)
    if not faults.schedule:
        return _random(config)
    events = parse_faults(faults.schedule, _world(config) + config.elastic.spares, config.train.steps)
    for event in events:
        if NEMESES[event.kind].local and config.launcher != "local":
            raise ValueError(f"faults.schedule: {event} needs all ranks on this machine; set launcher=local")
        before = [e.kind for e in events if e.step <= event.step]
        if event.kind == "flip" and not _may_mirror(config, before):
            raise ValueError(f"faults.schedule: {event} never strikes: {_no_mirrors(config)}")
        if event.phase == "send" and config.parallel.pp == 1:
            raise ValueError(
                f"faults.schedule: {event} never strikes, nothing is sent with parallel.pp=1; name another phase"
            )
        if event.phase in IN_A_CHANGE and not any(_causes_change(e) and e.step <= event.step for e in events):
            raise ValueError(
                f"faults.schedule: {event} strikes during a change of layout, but nothing changes it at step "
                f"{event.step} or before; add a kill in a phase of the step, or a join"
            )
    return events


def check_source(config: RunConfig) -> None:
    """One source of faults, which can do what is asked of it. Raises ValueError."""
    faults = config.faults
    asked = {
        "faults.schedule": bool(faults.schedule), "faults.kills": bool(faults.kills),
        "faults.mtbf_s": bool(faults.mtbf_s), "faults.trace": bool(faults.trace),
    }  # fmt: skip
    names = [name for name, is_set in asked.items() if is_set]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are {'both' if len(names) == 2 else 'all'} set; set one of them")
    if not (faults.mtbf_s or faults.trace):
        return
    if config.launcher != "local":
        raise ValueError(f"{names[0]} signals processes of this machine; set launcher=local")
    if faults.expect != "survive":
        raise ValueError(
            f"faults.expect={faults.expect} is for faults by step, not {names[0]}; set faults.schedule or faults.kills"
        )
    if nemeses_of(config) != ("kill",):
        raise ValueError(f"{names[0]} only kills; faults.nemeses={faults.nemeses} is for faults.kills, leave it out")
    if faults.trace:
        _check_trace(config)


def _check_trace(config: RunConfig) -> None:
    """It is well-formed, and begins with the ranks that the run does. Raises ValueError."""
    trace, ranks = config.faults.trace, _world(config) + config.elastic.spares
    there = sum(stroke.event == "add" and stroke.time_s == 0 for stroke in read_trace(trace))
    if there not in (0, ranks):
        raise ValueError(
            f"{trace} adds {there} node{'s'[: there != 1]} at time 0, but the run begins with {ranks} "
            f"rank{'s'[: ranks != 1]}; set cluster.nodes and cluster.ranks_per_node, or add as many"
        )


def nemeses_of(config: RunConfig) -> Sequence[str]:
    """Kinds of the random faults. Raises ValueError for a name that is none, or one that cannot be carried out."""
    asked = [name.strip() for name in config.faults.nemeses.split(",")]
    here = config.launcher == "local"
    if asked == ["all"]:
        possible = {name for name, nemesis in NEMESES.items() if here or not nemesis.local}
        return tuple(name for name in NEMESES if name in possible and (name != "flip" or _mirrors(config)))
    if "all" in asked:
        raise ValueError(
            f"faults.nemeses={config.faults.nemeses} has all beside others; write all, or kinds without it"
        )
    for name in asked:
        if name not in NEMESES:
            raise ValueError(f"faults.nemeses: {name!r} is no kind of fault; there are all, {', '.join(NEMESES)}")
        if NEMESES[name].local and not here:
            raise ValueError(f"faults.nemeses: {name} needs all ranks on this machine; set launcher=local")
        if name == "flip" and not _may_mirror(config, asked):
            raise ValueError(f"faults.nemeses: flip never strikes: {_no_mirrors(config)}")
    return tuple(asked)


def phases_of(config: RunConfig) -> list[str]:
    """Of a step of the first layout."""
    return [p for p in STEP_PHASES if p != "send" or config.parallel.pp > 1]


def _random(config: RunConfig) -> tuple[FaultEvent, ...]:
    faults, parallel = config.faults, config.parallel
    kinds = nemeses_of(config)
    if kinds == ("kill",):
        working = sum(parallel.stage_replicas or (parallel.dp,) * parallel.pp) * parallel.cp * parallel.tp
        steps = config.train.steps
        return random_kills(faults.seed, faults.kills, range(working), steps, faults.rejoin_after, phases_of(config))
    if not faults.kills:
        return ()
    anywhere = [p for p in STEP_PHASES if p != "send"]  # after a loss there may be no pipeline any more that sends
    return random_storm(
        faults.seed, faults.kills, _world(config), config.train.steps, faults.rejoin_after, kinds, anywhere,
        spares=config.elastic.spares,
    )  # fmt: skip


def _world(config: RunConfig) -> int:
    return config.cluster.nodes * config.cluster.ranks_per_node


def _mirrors(config: RunConfig) -> bool:
    """Whether some state has so few holders that another rank keeps a copy of it."""
    parallel, tolerate = config.parallel, config.elastic.tolerate
    teams = min(parallel.stage_replicas or (parallel.dp,)) * parallel.cp
    return tolerate > 0 and (parallel.zero > 0 or teams <= tolerate)


def _may_mirror(config: RunConfig, kinds: Sequence[str]) -> bool:
    """Whether some do, or will when faults of these kinds have left fewer ranks."""
    return _mirrors(config) or (config.elastic.tolerate > 0 and any(NEMESES[k].fatal for k in kinds if k in NEMESES))


def _no_mirrors(config: RunConfig) -> str:
    tolerate = config.elastic.tolerate
    knob = "parallel.zero=1" if tolerate else "elastic.tolerate=1"
    return f"no rank mirrors another with parallel.zero={config.parallel.zero}, elastic.tolerate={tolerate}; set {knob}"


def _causes_change(event: FaultEvent) -> bool:
    return NEMESES[event.kind].changes and (event.kind == "join" or event.phase not in IN_A_CHANGE)
