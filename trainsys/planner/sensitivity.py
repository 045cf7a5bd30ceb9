"""What a layout's step would take with half or twice of one thing, and whether another layout would win then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trainsys.config import ClusterConfig, DeviceConfig, RunConfig
from trainsys.perf.device import scaled
from trainsys.planner.check import check_batch, check_layout
from trainsys.planner.device import Rate, rate
from trainsys.planner.devices import on_device
from trainsys.planner.on_device import known_device
from trainsys.planner.plan import EQUAL, Plan
from trainsys.planner.predict import predict
from trainsys.planner.ranking import with_layout

FACTORS = (0.5, 2.0)
Change = Callable[[RunConfig, Rate, float], tuple[RunConfig, Rate]]


@dataclass(frozen=True)
class Case:
    """One thing changed.

    Attributes:
        what: is changed by `factor`.
        step_s: of the same layout; None when it cannot run so, and `why` says why.
        tokens_ratio: its tokens/s over those now.
        winner: the fastest layout then, of those compared; `winner_step_s` its step.
        over_gib: that the layout lacks then; 0 when it fits.
    """

    what: str
    factor: float
    step_s: float | None
    tokens_ratio: float | None
    over_gib: float
    winner: str
    winner_step_s: float | None
    changes_winner: bool
    why: str = ""


def sensitivity(config: RunConfig, plans: Sequence[Plan], compared: int = 8, sized: bool = False) -> tuple[Case, ...]:
    """Halve and double what the step depends on, for ``plans[0]`` and the `compared` best of `plans`, best first.

    Layouts that were not among the best before are not looked at. Where sizes were searched (`sized`), they are named
    with their microbatch size.
    """
    measured = rate(config.cluster, plans[0].num_ranks)
    cases = []
    for what, change in CHANGES.items():
        if _counts(config, what):
            cases += [
                _case(what, factor, *change(config, measured, factor), plans[:compared], sized) for factor in FACTORS
            ]
    return tuple(cases)


def _case(what: str, factor: float, config: RunConfig, measured: Rate, plans: Sequence[Plan], sized: bool) -> Case:
    now = plans[0]
    own, why = _predicted(config, measured, now)
    over = max(0.0, own.peak_gib - own.limit_gib) if own else 0.0
    rivals = [rival for rival, _ in (_predicted(config, measured, plan) for plan in plans[1:]) if rival]
    able = [plan for plan in ([own] if own else []) + rivals if plan.peak_gib <= plan.limit_gib]
    best = min(able, key=lambda plan: plan.step_s, default=None)
    if own and not over and best and own.step_s <= (1 + EQUAL) * best.step_s:
        best = own
    return Case(
        what=what,
        factor=factor,
        step_s=own.step_s if own else None,
        tokens_ratio=own.tokens_per_s / now.tokens_per_s if own else None,
        over_gib=over,
        winner=best.name(sized) if best else "",
        winner_step_s=best.step_s if best else None,
        changes_winner=best is not None
        and (best.parallel, best.microbatch_size) != (now.parallel, now.microbatch_size),
        why=why,
    )


def _predicted(config: RunConfig, measured: Rate, plan: Plan) -> tuple[Plan | None, str]:
    """The plan's layout under `config`, or the rule that it breaks there."""
    config = with_layout(config, plan.parallel, plan.microbatch_size)
    try:
        check_batch(config)
        check_layout(config)
    except ValueError as error:
        return None, str(error).partition(";")[0]
    return predict(config, plan.parallel, measured), ""


def _counts(config: RunConfig, what: str) -> bool:
    """Whether the cluster has it at all."""
    return (
        config.cluster.nodes > 1
        if what.startswith("inter")
        else config.cluster.ranks_per_node > 1 or "intra" not in what
    )


def _link(name: str) -> Change:
    def change(config: RunConfig, measured: Rate, factor: float) -> tuple[RunConfig, Rate]:
        link = getattr(config.cluster, name)
        return _cluster(config, **{name: replace(link, gbps=link.gbps * factor)}), measured

    return change


def _device_rate(config: RunConfig, measured: Rate, factor: float) -> tuple[RunConfig, Rate]:
    def changed(device: DeviceConfig) -> DeviceConfig:
        known = known_device(on_device(config, device))
        name = scaled(known, rate=factor).name if known else device.name
        return replace(device, name=name, tflops=device.tflops * factor)

    faster = replace(
        measured,
        peak_flops=measured.peak_flops * factor,
        flops=measured.flops * factor,
        alone_flops=measured.alone_flops * factor,
    )
    return _devices(config, changed), faster


def _device_memory(config: RunConfig, measured: Rate, factor: float) -> tuple[RunConfig, Rate]:
    def changed(device: DeviceConfig) -> DeviceConfig:
        known = known_device(on_device(config, device))
        name = scaled(known, memory=factor).name if known else device.name
        return replace(device, name=name, memory_gbps=device.memory_gbps * factor)

    return _devices(config, changed), measured


def _devices(config: RunConfig, changed: Callable[[DeviceConfig], DeviceConfig]) -> RunConfig:
    """Every type of device changed."""
    others = tuple(replace(other, device=changed(other.device)) for other in config.cluster.other_devices)
    return _cluster(config, device=changed(config.cluster.device), other_devices=others)


def _cluster(config: RunConfig, **changes: object) -> RunConfig:
    cluster: ClusterConfig = replace(config.cluster, **changes)  # type: ignore[arg-type]
    return replace(config, cluster=cluster)


def _global_batch(config: RunConfig, measured: Rate, factor: float) -> tuple[RunConfig, Rate]:
    size = max(1, int(config.batch.global_size * factor))
    return replace(config, batch=replace(config.batch, global_size=size)), measured


def _seq_len(config: RunConfig, measured: Rate, factor: float) -> tuple[RunConfig, Rate]:
    length = max(1, int(config.batch.seq_len * factor))
    model = replace(config.model, max_seq_len=max(config.model.max_seq_len, length))
    return replace(config, batch=replace(config.batch, seq_len=length), model=model), measured


CHANGES: dict[str, Change] = {
    "inter-node bandwidth": _link("inter_node"),
    "intra-node bandwidth": _link("intra_node"),
    "device rate": _device_rate,
    "memory bandwidth": _device_memory,
    "global batch": _global_batch,
    "sequence length": _seq_len,
}
