"""What train and drill check before anything is started or written."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from trainsys.config import RunConfig, load
from trainsys.planner.check import check_parallel

if TYPE_CHECKING:
    from rich.console import Console

_KEPT_S = 0.01  # a sleep of so long comes late by about 1 %


def prepared(args: Sequence[str]) -> RunConfig:
    """The config of a verb that trains here, checked against this machine.

    Raises:
        ValueError: one line with the knob to turn.
    """
    config = load(args)
    if config.train.emulate:
        config = emulated(config)
    check_troubles(config)
    check_parallel(config, config.cluster.nodes * config.cluster.ranks_per_node)
    check_machine(config)
    return config


def emulated(config: RunConfig) -> RunConfig:
    """`config` as it can be emulated here: over gloo, each rank with a device of its own, of a rate that is known.

    Raises:
        ValueError: it makes no sense without a model, or would stand among real checkpoints.
    """
    from trainsys.elastic.manifest import checkpoint_dir, saved_steps
    from trainsys.planner.device import gemm_flops

    if config.train.init_from:
        raise ValueError(
            f"train.init_from={config.train.init_from} with train.emulate=true, which has no weights; leave one out"
        )
    if config.parallel.vocabulary != "ends":
        raise ValueError(
            f"parallel.vocabulary={config.parallel.vocabulary} with train.emulate=true, which has no vocabulary to "
            "share out; set parallel.vocabulary=ends and model.vocab_parts=1"
        )
    if saved_steps(config):
        raise ValueError(
            f"train.emulate=true, but {checkpoint_dir(config)} holds checkpoints of a training; set another run_dir"
        )
    device = replace(config.cluster.device, backend="gloo")
    if not device.tflops:
        device = replace(device, tflops=round(gemm_flops() / 1e12, 6))
    return replace(config, cluster=replace(config.cluster, device=device, shared_cores=False))


def check_troubles(config: RunConfig) -> None:
    """Whether ``train.emulate_slow`` can be. Raises ValueError."""
    from trainsys.elastic.troubles import parse_troubles

    text, most = config.train.emulate_slow, _most_ranks(config)
    path = Path(text.removeprefix("file:"))
    if text.startswith("file:"):
        text = path.read_text() if path.exists() else ""
    for trouble in parse_troubles(text):
        strangers = [rank for rank in (trouble.src, trouble.rank) if rank is not None and rank >= most]
        if strangers:
            raise ValueError(f"train.emulate_slow={trouble} names rank {strangers[0]}, but ranks are 0 to {most - 1:g}")
        if trouble.src is None and 1 < trouble.much < inf and not config.train.emulate:
            raise ValueError(f"train.emulate_slow={trouble} slows down emulated computing; set train.emulate=true")


def _most_ranks(config: RunConfig) -> float:
    """Ranks that there can be in the run, those that join among them; infinite where nobody knows."""
    faults = config.faults
    if config.launcher != "local" or faults.trace or (faults.rejoin_after and (faults.kills or faults.mtbf_s)):
        return inf
    ranks = config.cluster.nodes * config.cluster.ranks_per_node
    return ranks + config.elastic.spares + faults.schedule.count("join@")


def check_machine(config: RunConfig) -> None:
    """Whether this machine has what the run needs: its port, a device, folders that can be written.

    Raises:
        ValueError: one line with the knob to turn.
    """
    ranks = config.cluster.nodes * config.cluster.ranks_per_node
    if config.elastic.min_ranks > ranks:
        raise ValueError(
            f"elastic.min_ranks={config.elastic.min_ranks} but the cluster has {ranks} rank"
            f"{'s'[: ranks != 1]}; lower elastic.min_ranks"
        )
    tolerate = config.elastic.tolerate
    if tolerate > max(1, ranks - 1):  # 1 is the default, and a single rank has nobody to keep copies
        raise ValueError(
            f"elastic.tolerate={tolerate} needs at least {tolerate + 1} ranks, but the cluster has {ranks}; "
            f"set elastic.tolerate<={ranks - 1}"
        )
    check_folder(Path(config.run_dir), "run_dir")
    if config.checkpoint.dir:
        check_folder(Path(config.checkpoint.dir), "checkpoint.dir")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", config.elastic.port))
        except OSError as error:
            used = f"elastic.port={config.elastic.port} cannot be used: {error.strerror}"
            raise ValueError(f"{used}; set elastic.port=0 for a free one") from None
    if config.cluster.device.backend == "nccl":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("cluster.device.backend=nccl but this machine has no GPU; set cluster.device.backend=gloo")
    check_launch(config)


def check_launch(config: RunConfig) -> None:
    """Whether the ranks find what they need where ``launcher`` starts them: a Ray cluster, clocks that may be set.

    Raises:
        ValueError: one line with the knob to turn.
    """
    if config.elastic.clocks != "none":
        from trainsys.elastic.clocks.registry import check_clocks

        check_clocks(config)
    if config.launcher == "ray":
        from trainsys.elastic.ray_cluster import check_places, connect

        connect()
        check_places(config)


def check_start(config: RunConfig) -> None:
    """Whether the weights of ``train.init_from`` are there and fit; ValueError in one line."""
    if config.train.init_from:
        from trainsys.elastic.kinds import weights_to_start_from

        weights_to_start_from(config)


def check_folder(path: Path, key: str) -> None:
    """Whether files can be made in `path`, which need not exist yet; ValueError names `key`."""
    nearest = path.absolute()
    while not (nearest.exists() or nearest.is_symlink()):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ValueError(f"{key}={path}: {nearest} is a file; set {key} to a folder")
    try:
        with TemporaryDirectory(dir=nearest):  # rights alone do not tell
            pass
    except OSError as error:
        raise ValueError(f"{key}={path}: {nearest} cannot be written: {error.strerror}; set another {key}") from None


def check_data(config: RunConfig, console: Console) -> None:
    """Open (and, the first time, tokenise) the data, and look at the weights to start from.

    Raises:
        ValueError: one line naming the file or the key at fault.
    """
    if config.train.emulate:
        console.print(_tell_emulated(config), markup=False)
        return
    check_start(config)
    from trainsys.data.build import build_source
    from trainsys.data.sampler import Sampler

    sampler = Sampler(build_source(config.data, config.model.vocab_size), config.batch.seq_len, config.train.seed)
    used = config.train.steps * config.batch.global_size
    console.print(
        f"data {config.data.path}: {sampler.num_sequences:,} sequences of {config.batch.seq_len} tokens; the run uses "
        f"{used:,} ({used / sampler.num_sequences:.2g} epochs)",
        markup=False,
    )


def _tell_emulated(config: RunConfig) -> str:
    """What is emulated, and whether this machine keeps such times."""
    from trainsys.planner.timeline import timeline

    planned, scale = timeline(config), config.train.emulate_scale
    shortest_s = scale * min(planned.costs.f_s)
    told = (
        f"emulated: stages sleep for as long as planned for {config.cluster.device.name} (F {1e3 * shortest_s:.3g} ms "
        f"or more, train.emulate_scale={scale:g}); messages, reduction and faults are real, losses are not"
    )
    if shortest_s < _KEPT_S:
        told += f"; sleeps this short come late, set train.emulate_scale={_round_up(scale * _KEPT_S / shortest_s)}"
    return told


def _round_up(value: float) -> str:
    """Up to a number of one digit."""
    from math import ceil, floor, log10

    power = 10.0 ** floor(log10(value))
    return f"{ceil(value / power) * power:g}"
