"""Whether a layout is legal for a model, a batch and a number of ranks; what to change when it is not."""

from __future__ import annotations

import dataclasses

from trainsys.config import ParallelConfig, RunConfig
from trainsys.models.geometry import check_split, resolve, split_layers
from trainsys.planner.check_attention import check_attention, check_method
from trainsys.planner.experts import check_experts
from trainsys.planner.in_flight import FORMS
from trainsys.planner.predict import worst_stage
from trainsys.planner.stages import Stages, notation
from trainsys.planner.step_schedule import schedule_of
from trainsys.schedule import GENERATORS, is_file
from trainsys.space.build import axis_order, check_devices
from trainsys.space.runs import FOLDED

_CHOICES = {
    "zero": (0, 1, 2, 3),
    "recompute": ("none", "full", "stage"),
    "offload": ("none", "activations", "scheduled"),
    "reduction": ("canonical", "fast"),
}


def check_parallel(config: RunConfig, num_ranks: int) -> None:
    """Whether ``config.parallel`` can train ``config`` on `num_ranks` ranks.

    Raises:
        ValueError: one line with the numbers and the knob to turn.
    """
    check_batch(config)
    check_names(config.parallel)
    check_product(config.parallel, num_ranks)
    if config.parallel.devices:
        check_devices(config.parallel.devices, Stages.of(config.model, config.parallel).num_ranks, num_ranks)
    check_layout(config)
    check_memory(config)


def check_layout(config: RunConfig) -> None:
    """Everything about ``config.parallel`` but the number of ranks and their memory. Raises ValueError."""
    parallel = config.parallel
    check_names(parallel)
    runs, num_layers = parallel.pp * parallel.vp, config.model.num_layers
    if parallel.vp > 1 and runs > num_layers:
        most = num_layers // parallel.pp
        knob = f"parallel.vp={most} or lower" if most > 1 else "parallel.vp=1 and parallel.schedule=1f1b"
        raise ValueError(f"parallel.pp*vp={runs} runs of layers but model.num_layers={num_layers}; set {knob}")
    layers = parallel.stage_layers or split_layers(num_layers, runs)
    check_split(config.model, parallel.tp, layers)
    check_vocabulary(config)
    _check_sequence(config)
    _check_shares(config)
    _check_schedule(config)
    check_experts(config)


def check_vocabulary(config: RunConfig) -> None:
    """Whether the model's parts of the vocabulary suit ``parallel.vocabulary`` and its stages. Raises ValueError."""
    parallel, parts = config.parallel, config.model.vocab_parts
    if parallel.vocabulary == "ends":
        if parts > 1:
            raise ValueError(
                f"model.vocab_parts={parts} but parallel.vocabulary=ends keeps both matrices whole; set "
                "parallel.vocabulary=one_barrier, or model.vocab_parts=1"
            )
        return
    if parts < parallel.pp or parts == 1:
        raise ValueError(
            f"parallel.vocabulary={parallel.vocabulary} gives each of parallel.pp={parallel.pp} stages a part of the "
            f"vocabulary but model.vocab_parts={parts}; set model.vocab_parts={max(2, parallel.pp)} or more"
        )
    if parallel.zero >= 2:
        raise ValueError(
            f"parallel.vocabulary={parallel.vocabulary} runs under parallel.zero=0 and 1, not {parallel.zero}; set "
            "parallel.zero=1"
        )
    if is_file(parallel.schedule):
        raise ValueError(
            f"parallel.schedule={parallel.schedule} has no passes for parallel.vocabulary={parallel.vocabulary}; set "
            "parallel.vocabulary=ends, or parallel.schedule=1f1b"
        )


def _check_sequence(config: RunConfig) -> None:
    """Whether cp teams, and under sequence parallelism tp ranks, can share a sequence. Raises ValueError."""
    parallel, seq_len = config.parallel, config.batch.seq_len
    if parallel.cp > 1 and seq_len < 2 * parallel.cp:
        raise ValueError(
            f"batch.seq_len={seq_len} is too short for parallel.cp={parallel.cp}, which cuts it into "
            f"{2 * parallel.cp} chunks; set parallel.cp={max(1, seq_len // 2)}"
        )
    check_attention(config)
    shares = f"parallel.cp·tp={parallel.cp}·{parallel.tp}" if parallel.cp > 1 else f"parallel.tp={parallel.tp}"
    if parallel.sequence_parallel and (parallel.tp == 1 or seq_len % (parallel.cp * parallel.tp)):
        raise ValueError(
            f"parallel.sequence_parallel needs tp > 1 {'whose product with cp' if parallel.cp > 1 else 'that'} divides "
            f"batch.seq_len={seq_len}, got {shares}; set parallel.sequence_parallel=false"
        )
    for length in config.batch.seq_lens:
        if parallel.cp > 1:
            raise ValueError(
                f"batch.seq_lens with parallel.cp={parallel.cp}: parts of sequences have one length; set parallel.cp=1"
            )
        if parallel.sequence_parallel and length % parallel.tp:
            raise ValueError(
                f"batch.seq_lens has {length}, which parallel.tp={parallel.tp} does not divide; set "
                f"{length // parallel.tp * parallel.tp or parallel.tp} or parallel.sequence_parallel=false"
            )
    microbatches = config.batch.global_size // config.batch.microbatch_size
    leaves = 1 << (microbatches - 1).bit_length()  # of the summation tree, per part of a sequence
    if leaves * parallel.cp > MOST_MICROBATCHES:
        raise ValueError(
            f"parallel.cp={parallel.cp} parts of {microbatches} microbatches (rounded up to a power of two) are more "
            f"than {MOST_MICROBATCHES}; set parallel.cp={MOST_MICROBATCHES // leaves} or raise batch.microbatch_size"
        )


MOST_MICROBATCHES = 8192  # of a step: what the summation tree's message tags can number


def check_batch(config: RunConfig) -> None:
    """The batch by itself, and against the model. Raises ValueError."""
    batch, model = config.batch, resolve(config.model)
    check_method(config.parallel.cp_method)
    for name in ("global_size", "microbatch_size", "seq_len"):
        if getattr(batch, name) < 1:
            raise ValueError(f"batch.{name}={getattr(batch, name)} must be at least 1")
    for length in batch.seq_lens:
        if not 1 <= length <= batch.seq_len:
            raise ValueError(f"batch.seq_lens has {length}, not within 1 and batch.seq_len={batch.seq_len}")
    microbatches = batch.global_size // batch.microbatch_size
    if microbatches > MOST_MICROBATCHES:
        raise ValueError(
            f"batch.global_size={batch.global_size} makes {microbatches} microbatches of {batch.microbatch_size}, more "
            f"than {MOST_MICROBATCHES}; set batch.microbatch_size={-(-batch.global_size // MOST_MICROBATCHES)} or more"
        )
    if batch.seq_len > model.max_seq_len:
        raise ValueError(
            f"batch.seq_len={batch.seq_len} is longer than model.max_seq_len={model.max_seq_len}; "
            f"set batch.seq_len={model.max_seq_len} or raise model.max_seq_len"
        )
    if batch.global_size % batch.microbatch_size:
        raise ValueError(
            f"batch.global_size={batch.global_size} is not divisible by batch.microbatch_size={batch.microbatch_size}; "
            f"set batch.global_size={_nearest(batch.global_size, batch.microbatch_size)}"
        )


def check_product(parallel: ParallelConfig, num_ranks: int) -> None:
    """Whether the layout's degrees use `num_ranks` ranks; a ragged one may leave some idle. Raises ValueError."""
    cp = parallel.cp
    if parallel.stage_replicas:
        needed = sum(parallel.stage_replicas) * cp * parallel.tp
        if needed > num_ranks:
            each = f"parallel.cp*tp={cp}*{parallel.tp}" if cp > 1 else f"parallel.tp={parallel.tp}"
            raise ValueError(
                f"{each} × parallel.stage_replicas={list(parallel.stage_replicas)} needs {needed} ranks but the "
                f"cluster has {num_ranks}; lower parallel.stage_replicas"
            )
        return
    product = parallel.dp * cp * parallel.tp * parallel.pp
    if product == num_ranks:
        return
    replica = cp * parallel.tp
    pipeline = replica * parallel.pp
    knob = f"parallel.dp={num_ranks // pipeline}"
    if num_ranks % pipeline and num_ranks % replica == 0:
        knob = f"parallel.dp={num_ranks // replica} parallel.pp=1"
    elif num_ranks % pipeline:
        knob = f"parallel.dp={num_ranks} parallel.tp=1 parallel.pp=1{' parallel.cp=1' if cp > 1 else ''}"
    degrees, plural = f"dp*{'cp*' if cp > 1 else ''}tp*pp", "s"[: num_ranks != 1]
    raise ValueError(f"parallel.{degrees}={product} but the cluster has {num_ranks} rank{plural}; set {knob}")


def check_memory(config: RunConfig) -> None:
    """Whether the rank that needs most memory has it. Raises ValueError."""
    memory, limit = worst_stage(config, Stages.of(config.model, config.parallel))
    if memory.total <= limit:
        return
    parts = {name: gib for name, gib in dataclasses.asdict(memory).items() if gib}
    largest = max(parts, key=lambda name: parts[name])
    raise ValueError(
        f"{notation(config.parallel)} needs {memory.total:.3g} GiB per rank ({largest} {parts[largest]:.3g} GiB) "
        f"but cluster.device.memory_gib={limit:g}; {_memory_knob(config, largest)}"
    )


def _memory_knob(config: RunConfig, largest: str) -> str:
    parallel = config.parallel
    if largest in ("activations", "logits"):
        if parallel.recompute == "none" and largest == "activations":
            return "set parallel.recompute=full or lower batch.microbatch_size"
        return "lower batch.microbatch_size or raise parallel.tp or parallel.cp"
    if largest == "gradients" and parallel.reduction == "canonical" and parallel.zero < 2:
        return "set parallel.reduction=fast (losses then depend on the layout) or raise parallel.tp or parallel.pp"
    if parallel.zero == 0 and parallel.dp > 2:
        return "set parallel.zero=1 or raise parallel.tp or parallel.pp"
    return "raise parallel.tp or parallel.pp"


def check_degrees(parallel: ParallelConfig) -> None:
    """Whether the degrees, names and ragged fields can be of any layout, run or only stored. Raises ValueError."""
    choices = {**_CHOICES, "schedule": tuple(GENERATORS)}
    for name, known in choices.items():
        value = getattr(parallel, name)
        if value not in known and not (name == "schedule" and is_file(value)):
            raise ValueError(f"parallel.{name}={value} is unknown; set one of {', '.join(map(str, known))}")
    for name in ("dp", "tp", "pp", "vp", "cp", "ep"):
        if getattr(parallel, name) < 1:
            raise ValueError(f"parallel.{name}={getattr(parallel, name)} must be at least 1")
    axis_order(parallel)
    _check_ragged(parallel)


def check_names(parallel: ParallelConfig) -> None:
    """Whether a step can run on such a layout at all, however many microbatches it has. Raises ValueError."""
    check_degrees(parallel)
    schedule, several = parallel.schedule, parallel.vp > 1
    if schedule in FORMS and parallel.placement == "v":
        raise ValueError(
            f"parallel.schedule={schedule} has its runs of layers in a loop, not in a V; set "
            f"parallel.placement=auto, or parallel.schedule={', '.join(sorted(FOLDED))}"
        )
    if schedule in FORMS and several != (schedule == "interleaved") and schedule != "gpipe":
        raise ValueError(
            f"parallel.vp={parallel.vp} with parallel.schedule={schedule}: interleaved has several runs of "
            f"layers per stage, 1f1b has one; set parallel.schedule={'interleaved' if several else '1f1b'}"
        )
    if parallel.recompute == "stage" and parallel.offload != "none":
        raise ValueError(
            f"parallel.recompute=stage keeps only inputs, parallel.offload={parallel.offload} would move little; set "
            "parallel.offload=none or parallel.recompute=full"
        )
    if parallel.reduction == "fast" and parallel.zero >= 2:
        raise ValueError(
            f"parallel.reduction=fast saves nothing under parallel.zero={parallel.zero}, which adds gradients in tree "
            "order as they come; set parallel.reduction=canonical"
        )


def _check_schedule(config: RunConfig) -> None:
    """Whether the schedule suits the stages and microbatches. Raises ValueError."""
    if config.parallel.schedule not in FORMS or config.parallel.activations:
        schedule_of(config, Stages.of(config.model, config.parallel))


def _check_ragged(parallel: ParallelConfig) -> None:
    for name, vp in (("stage_layers", parallel.vp), ("stage_replicas", 1)):
        values = list(getattr(parallel, name))
        if values and len(values) != parallel.pp * vp:
            knob = f"set parallel.pp={len(values)}" if vp == 1 else f"name {parallel.pp * vp} runs of layers"
            names, has = (
                ("stages", f"parallel.pp={parallel.pp}") if vp == 1 else ("runs", f"parallel.pp·vp={parallel.pp}·{vp}")
            )
            raise ValueError(f"parallel.{name}={values} names {len(values)} {names} but {has}; {knob}")
        if any(value < 1 for value in values):
            raise ValueError(f"parallel.{name}={values}: every stage needs at least 1")


def _check_shares(config: RunConfig) -> None:
    """Uniform replicas get equal shares of the microbatches; ragged ones at least one microbatch each."""
    batch, parallel = config.batch, config.parallel
    microbatches, most = batch.global_size // batch.microbatch_size, max(parallel.stage_replicas or (parallel.dp,))
    if most > microbatches:
        raise ValueError(
            f"{microbatches} microbatch{'es'[: 2 * (microbatches != 1)]} < "
            f"parallel.{'stage_replicas' if parallel.stage_replicas else 'dp'}={most}; "
            f"raise batch.global_size to {most * batch.microbatch_size} or lower batch.microbatch_size"
        )
    if not parallel.stage_replicas and microbatches % parallel.dp:
        divisors = [d for d in range(1, microbatches + 1) if microbatches % d == 0]
        nearest = sorted(sorted(divisors, key=lambda d: abs(d - parallel.dp))[:2])
        raise ValueError(
            f"batch.global_size={batch.global_size} is not divisible by "
            f"batch.microbatch_size·parallel.dp={batch.microbatch_size}·{parallel.dp}; set batch.global_size="
            f"{_nearest(batch.global_size, batch.microbatch_size * parallel.dp)}, "
            f"or parallel.dp={' or '.join(map(str, nearest))}"
        )


def _nearest(value: int, step: int) -> str:
    """The multiples of `step` around `value`."""
    below = value // step * step
    return " or ".join(str(n) for n in (below, below + step) if n > 0)
