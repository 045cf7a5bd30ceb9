"""Every layout of a model on n ranks: the legal ones, and why the others are not.

Layouts come in blocks: one grid of dp · cp · tp · pp ranks with its ep, and all ways to run it. What a grid forbids it
forbids to all of them, so that legality is asked once per grid.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isqrt, prod
from typing import Any

from trainsys.config import ParallelConfig, RunConfig
from trainsys.models.geometry import resolve
from trainsys.planner.check import MOST_MICROBATCHES, check_degrees, check_layout, check_names
from trainsys.planner.in_flight import FORMS
from trainsys.schedule import is_file
from trainsys.space.runs import is_folded

_MOST_RANKS = 1 << 22
_ODD_SIZES = 12  # largest microbatch that need not be a power of two
SEARCHED = ("dp", "tp", "pp", "cp", "ep", "vp", "zero", "sequence_parallel", "schedule", "recompute", "offload")
TAKEN = ("order", "reduction")  # as the config has them
_EVEN: dict[str, Any] = {"stage_layers": (), "stage_replicas": (), "devices": ()}


@dataclass(frozen=True)
class Block:
    """All ways to run one grid. The axes below are those of the arrays that score them, in this order.

    Attributes:
        grid: dp, tp, pp, cp and ep; its other fields are those of the plainest layout.
        schedules: (name, runs of layers per stage).
    """

    grid: ParallelConfig
    microbatch_sizes: tuple[int, ...]
    sequence_parallel: tuple[bool, ...]
    schedules: tuple[tuple[str, int], ...]
    recompute: tuple[str, ...]
    offload: tuple[str, ...]
    zero: tuple[int, ...]

    @cached_property
    def axes(self) -> tuple[tuple[Any, ...], ...]:
        return (
            self.microbatch_sizes, self.sequence_parallel, self.schedules, self.recompute, self.offload, self.zero,
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes))

    @property
    def size(self) -> int:
        return prod(self.shape)

    def layout(self, number: int) -> tuple[ParallelConfig, int]:
        """Layout `number` of the block in row-major order, and its microbatch size."""
        values = []
        for axis in reversed(self.axes):
            number, place = divmod(number, len(axis))
            values.append(axis[place])
        zero, offload, recompute, (schedule, vp), sequence_parallel, microbatch_size = values
        parallel = dataclasses.replace(
            self.grid, zero=zero, offload=offload, recompute=recompute, schedule=schedule, vp=vp,
            sequence_parallel=sequence_parallel,
        )  # fmt: skip
        return parallel, microbatch_size


def check_fixed(config: RunConfig, fixed: Collection[str]) -> None:
    """Whether what is not searched, and what of the searched is `fixed`, can be of any layout. Raises ValueError."""
    for name in _EVEN:
        if name in fixed:
            what = "places are" if name == "devices" else "only even layouts are"
            raise ValueError(f"parallel.{name} cannot be kept: {what} searched; leave it out")
    if is_folded(config.parallel) or is_file(config.parallel.schedule):
        what = "lies in a V" if is_folded(config.parallel) else "is a file for one layout"
        raise ValueError(
            f"parallel.schedule={config.parallel.schedule} {what}, which is not searched; plan without "
            "parallel.schedule and parallel.placement, then compare schedules of the plan with trainsys simulate"
        )
    plain = {key: getattr(ParallelConfig(), key) for key in SEARCHED}
    given = {key: getattr(config.parallel, key) for key in fixed}
    check_names(dataclasses.replace(config.parallel, **_EVEN, **plain))
    check_degrees(dataclasses.replace(config.parallel, **_EVEN, **(plain | given)))


def check_size(config: RunConfig, num_ranks: int) -> None:
    """Whether so many ranks can be laid out in a reasonable time. Raises ValueError."""
    if num_ranks > _MOST_RANKS:
        raise ValueError(
            f"{num_ranks} ranks are more than the {_MOST_RANKS} that a plan is made for; lower "
            f"cluster.nodes={config.cluster.nodes} or cluster.ranks_per_node={config.cluster.ranks_per_node}"
        )


def candidates(
    config: RunConfig, num_ranks: int, fixed: Collection[str] = ()
) -> tuple[list[ParallelConfig], Counter[str]]:
    """All uniform layouts with dp · cp · tp · pp = `num_ranks`, with their variants, in a fixed order.

    The microbatch size is the config's. Layouts that are the same thing under two names (a schedule without a pipeline,
    ZeRO with one replica, sequence parallelism without tp) appear once.

    Args:
        fixed: those of `SEARCHED` that must be as in the config.

    Returns:
        the legal layouts, and how many were illegal by reason.
    """
    legal: list[ParallelConfig] = []
    rejected: Counter[str] = Counter()
    for block, reason in blocks(config, num_ranks, fixed):
        if reason:
            rejected[reason] += block.size
        else:
            legal += (block.layout(number)[0] for number in range(block.size))
    return legal, rejected


def blocks(
    config: RunConfig, num_ranks: int, fixed: Collection[str] = (), any_microbatch: bool = False
) -> Iterator[tuple[Block, str]]:
    """All blocks on `num_ranks` ranks, each with why it is illegal; that is empty where it is legal.

    Args:
        fixed: those of `SEARCHED` that must be as in the config.
        any_microbatch: try all sizes that divide a replica's share, not only the config's.
    """
    for cp, dp, tp, pp in _degrees(num_ranks):
        grid = dataclasses.replace(
            config.parallel, dp=dp, tp=tp, pp=pp, cp=cp, ep=1, vp=1, sequence_parallel=False, zero=0, offload="none",
            recompute="none", schedule="1f1b", **_EVEN,
        )  # fmt: skip
        sizes = _microbatch_sizes(config, dp) if any_microbatch else (config.batch.microbatch_size,)
        if any(getattr(grid, key) != getattr(config.parallel, key) for key in fixed if key in ("dp", "tp", "pp", "cp")):
            continue
        for size_group in _legal_together(config, grid, sizes):
            for block in _of_grid(config, grid, size_group, fixed):
                yield from _apart(config, block)


def _degrees(num_ranks: int) -> Iterator[tuple[int, int, int, int]]:
    """All (cp, dp, tp, pp) whose product is `num_ranks`."""
    for cp in divisors(num_ranks):
        for tp in divisors(num_ranks // cp):
            rest = num_ranks // cp // tp
            for pp in divisors(rest):
                yield cp, rest // pp, tp, pp


def divisors(number: int) -> list[int]:
    """Ascending."""
    low = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    return low + [number // d for d in reversed(low) if d * d != number]


def _microbatch_sizes(config: RunConfig, dp: int) -> tuple[int, ...]:
    """Divisors of a replica's sequences: powers of two and small ones. The config's where there are none."""
    share, rest = divmod(config.batch.global_size, dp)
    if rest or not share:
        return (config.batch.microbatch_size,)
    sizes = [d for d in divisors(share) if d & (d - 1) == 0 or d <= _ODD_SIZES]
    return tuple(d for d in sizes if config.batch.global_size // d <= MOST_MICROBATCHES) or (sizes[-1],)


def _legal_together(config: RunConfig, grid: ParallelConfig, sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """`sizes` apart by whether `grid` is legal with them."""
    by_reason: dict[str, list[int]] = {}
    for size in sizes:
        by_reason.setdefault(_reason(_with_size(config, size), grid), []).append(size)
    yield from map(tuple, by_reason.values())


def _of_grid(
    config: RunConfig, grid: ParallelConfig, sizes: tuple[int, ...], fixed: Collection[str]
) -> Iterator[Block]:
    """The blocks of one grid, one per ep, with what is `fixed`."""
    given = {key: getattr(config.parallel, key) for key in fixed}
    model, teams = resolve(config.model), grid.dp * grid.cp

    def kept(key: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value for value in values if key not in given or value == given[key])

    most = 1 if grid.reduction == "fast" else 3
    offload = ("none", "activations") if config.cluster.device.backend != "gloo" else ("none",)
    for ep in (d for d in divisors(teams) if d <= max(model.num_experts, 1)):
        block = Block(
            dataclasses.replace(grid, ep=ep),
            sizes,
            kept("sequence_parallel", (False, True) if grid.tp > 1 else (False,)),
            tuple(_schedules(grid.pp, model.num_layers, given)),
            kept("recompute", ("none", "full")),
            (given["offload"],) if "offload" in given else offload,
            kept("zero", tuple(range(most + 1)) if teams > 1 else (0,)),
        )
        if block.size and given.get("ep", ep) == ep:
            yield block


def _schedules(pp: int, num_layers: int, given: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Every schedule with its numbers of runs of layers per stage: the least for each length of the longest run."""
    names: tuple[str, ...] = (given["schedule"],) if "schedule" in given else tuple(FORMS)
    if pp == 1:  # nothing to schedule, but that one microbatch ends before the next begins
        names = (given.get("schedule", "1f1b"),)
    several = {-(-num_layers // (pp * vp)): vp for vp in range(num_layers // pp, 1, -1)}
    counts = [1, *sorted(several.values())]
    if given.get("vp", 1) > 1 and given["vp"] * pp <= num_layers:
        counts = [given["vp"]]
    for name in names:
        for vp in counts:
            legal = {"1f1b": vp == 1, "interleaved": vp > 1}.get(name, True) and (vp == 1 or pp > 1)
            if legal and given.get("schedule", name) == name and given.get("vp", vp) == vp:
                yield name, vp


def _apart(config: RunConfig, block: Block) -> Iterator[tuple[Block, str]]:
    """`block` with why it is illegal; without sequence parallelism and with it, where only that is."""
    batch = _with_size(config, block.microbatch_sizes[0])
    reason = _reason(batch, block.grid)
    why = ""
    if not reason and True in block.sequence_parallel:
        why = _reason(batch, dataclasses.replace(block.grid, sequence_parallel=True))
    if not why:
        yield block, reason
        return
    yield dataclasses.replace(block, sequence_parallel=(True,)), why
    if False in block.sequence_parallel:
        yield dataclasses.replace(block, sequence_parallel=(False,)), ""


def _with_size(config: RunConfig, microbatch_size: int) -> RunConfig:
    if microbatch_size == config.batch.microbatch_size:
        return config
    return dataclasses.replace(config, batch=dataclasses.replace(config.batch, microbatch_size=microbatch_size))


def _reason(config: RunConfig, parallel: ParallelConfig) -> str:
    """Why `parallel` is illegal, without the advice; empty when it is legal."""
    try:
        check_layout(dataclasses.replace(config, parallel=parallel))
    except ValueError as error:
        return str(error).split(";")[0]
    return ""
