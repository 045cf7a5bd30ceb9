"""Values that no run can use, whatever the model and the cluster: one table, checked whenever a config is loaded."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

_BELOW_1 = 1 - 2**-53  # the largest float64 below 1
_TINY = 5e-324  # the smallest above 0
_MOST = 1.7976931348623157e308  # finite
_WHOLE = 2**63 - 1
_LAYERS = (
    10_000  # ten times the deepest transformer trained (DeepNet, arXiv:2203.00555: 1,000); a plan lists each layer
)
SLOWEST_GBPS = 1e-6  # 1 kB/s is no link of a cluster, and a slip of units more likely
_SOONEST = 1e-3  # hours: a node that fails every 3.6 s finishes no step
# seconds that a limit allows: a busy machine pauses for some; poll(2) counts milliseconds in C ints
_SHORTEST, _LONGEST = 0.05, 1e6
_LIMIT = f"must lie in {_SHORTEST:g} to {_LONGEST:g} s"
_LIMIT_OR_NONE = f"{_LIMIT}, or be 0 for none"

BOUNDS: dict[str, tuple[float, float, str]] = {
    "model.num_layers": (-_WHOLE, _LAYERS, f"must be at most {_LAYERS}"),  # the least: `models.geometry`
    "model.rope_theta": (_TINY, _MOST, "must be positive and finite"),
    "model.norm_eps": (_TINY, _MOST, "must be positive and finite"),
    "model.router_aux_coef": (0, _MOST, "must not be negative"),
    "cluster.nodes": (1, _WHOLE, "must be at least 1"),
    "cluster.ranks_per_node": (1, _WHOLE, "must be at least 1"),
    "cluster.device.tflops": (0, _MOST, "must be positive, or 0 to measure it"),
    "cluster.device.memory_gib": (_TINY, _MOST, "must be positive and finite"),
    "cluster.device.efficiency": (_TINY, 1, "must lie in (0, 1]"),
    "cluster.device.memory_gbps": (_TINY, _MOST, "must be positive and finite"),
    "cluster.device.host_gbps": (_TINY, _MOST, "must be positive and finite"),
    "cluster.intra_node.gbps": (SLOWEST_GBPS, _MOST, "must be finite and at least 1e-06 GB/s"),
    "cluster.intra_node.latency_s": (0, _MOST, "must not be negative"),
    "cluster.inter_node.gbps": (SLOWEST_GBPS, _MOST, "must be finite and at least 1e-06 GB/s"),
    "cluster.inter_node.latency_s": (0, _MOST, "must not be negative"),
    "cluster.node_mtbf_hours": (0, _MOST, "must be positive, or 0 for nodes that never fail"),
    "cluster.node_repair_hours": (_TINY, _MOST, "must be positive and finite"),
    "parallel.activations": (0, _MOST, "must be positive, or 0 for as many as the schedule keeps"),
    "optim.lr": (_TINY, _MOST, "must be positive and finite"),
    "optim.min_lr": (0, _MOST, "must not be negative"),
    "optim.warmup_steps": (0, _WHOLE, "must not be negative"),
    "optim.eps": (_TINY, _MOST, "must be positive and finite"),
    "optim.weight_decay": (0, _MOST, "must not be negative"),
    "optim.clip": (0, _MOST, "must be positive, or 0 for no clipping"),
    "train.steps": (1, _WHOLE, "must be at least 1"),
    "train.seed": (0, _WHOLE, "must not be negative"),
    "train.log_every": (1, _WHOLE, "must be at least 1"),
    "train.trace_steps": (0, _WHOLE, "must not be negative"),
    "train.emulate_scale": (_TINY, _MOST, "must be positive and finite"),
    "checkpoint.every": (0, _WHOLE, "must be at least 1, or 0 for a checkpoint at the end only"),
    "checkpoint.keep": (1, _WHOLE, "must be at least 1"),
    "elastic.heartbeat_limit_s": (_SHORTEST, _LONGEST, f"{_LIMIT}; healthy ranks count as dead below"),
    "elastic.min_ranks": (1, _WHOLE, "must be at least 1"),
    "elastic.tolerate": (0, _WHOLE, "must be at least 1, or 0 to keep no copies"),
    "elastic.spare_delay_s": (-_LONGEST, _LONGEST, f"must be at most {_LONGEST:g} s, or -1 for never"),
    "elastic.spares": (0, _WHOLE, "must not be negative"),
    "elastic.manager_limit_s": (_SHORTEST, _LONGEST, _LIMIT),
    "elastic.start_limit_s": (_SHORTEST, _LONGEST, _LIMIT),
    "elastic.comm_timeout_s": (_SHORTEST, _LONGEST, _LIMIT),
    "elastic.stall_limit_s": (_SHORTEST, _LONGEST, _LIMIT),
    "elastic.hang_limit_s": (0, _LONGEST, _LIMIT_OR_NONE),
    "elastic.straggler_factor": (1.01, _MOST, "must be at least 1.01"),
    "elastic.straggler_steps": (1, 1000, "must lie in 1 to 1000"),
    "elastic.staging_mib": (2**-10, 2**20, "must lie in 1/1024 to 1048576"),
    "elastic.chunk": (1, _WHOLE, "must be at least 1"),
    "elastic.port": (0, 65535, "must lie in 0 to 65535 (0: any free port)"),
    "elastic.history_every": (0, _WHOLE, "must be at least 1, or 0 for at changes and at the end only"),
    "faults.mtbf_s": (0, _MOST, "must be positive, or 0 for none"),
    "faults.trace_speed": (_TINY, _MOST, "must be positive and finite"),
    "faults.grace_s": (0, _LONGEST, f"must lie in 0 to {_LONGEST:g} s"),
    "faults.kills": (0, _WHOLE, "must not be negative"),
    "faults.rejoin_after": (0, _WHOLE, "must be at least 1, or 0 for never"),
}
CHOICES: dict[str, tuple[str, ...]] = {"cluster.device.backend": ("gloo", "nccl")}


def check_bounds(config: Any) -> None:
    """Check a `trainsys.config.RunConfig`.

    Raises:
        ValueError: one line with the key, its value and what it may be.
    """
    for key, (low, high, rule) in BOUNDS.items():
        value = attrgetter(key)(config)
        if high == _WHOLE and value > high:
            raise ValueError(f"{key}={value} is too large; it must fit into 64 bits")
        if not low <= value <= high:  # NaN is in no interval
            raise ValueError(f"{key}={value:g} {rule}" if isinstance(value, float) else f"{key}={value} {rule}")
    for i, other in enumerate(config.cluster.other_devices):
        for key, (low, high, rule) in BOUNDS.items():
            name = key.removeprefix("cluster.device.")
            if name != key and not low <= getattr(other.device, name) <= high:
                value = getattr(other.device, name)
                raise ValueError(f"cluster.other_devices[{i}].device.{name}={value:g} {rule}")
    for key, choices in CHOICES.items():
        value = attrgetter(key)(config)
        if value not in choices:
            raise ValueError(f"{key}={value} is unknown; set one of {', '.join(choices)}")
    mtbf_hours = config.cluster.node_mtbf_hours
    if 0 < mtbf_hours < _SOONEST:
        raise ValueError(
            f"cluster.node_mtbf_hours={mtbf_hours:g} is less than {_SOONEST:g} h; set 0 for nodes that never fail"
        )
    if 0 < config.elastic.hang_limit_s < _SHORTEST:
        raise ValueError(f"elastic.hang_limit_s={config.elastic.hang_limit_s:g} {_LIMIT_OR_NONE}")
    betas = config.optim.betas
    for key in ("parallel.stage_layers", "parallel.stage_replicas", "parallel.devices", "batch.seq_lens"):
        if not all(type(value) is int for value in attrgetter(key)(config)):
            raise ValueError(f"{key}={list(attrgetter(key)(config))} must be whole numbers, such as [1, 2]")
    if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta <= _BELOW_1 for beta in betas):
        raise ValueError(f"optim.betas={list(betas)} must be two numbers in [0, 1)")
    if config.optim.min_lr > config.optim.lr:
        raise ValueError(
            f"optim.min_lr={config.optim.min_lr:g} is above optim.lr={config.optim.lr:g}; lower optim.min_lr"
        )
    if config.elastic.release == "progressive" and config.cluster.device.backend != "gloo":
        raise ValueError(
            f"elastic.release=progressive gives memory back page by page, which {config.cluster.device.backend}'s "
            "devices cannot; set elastic.release=commit"
        )
    if config.elastic.move == "beside" and (why := only_in_a_pause(config)):
        raise ValueError(f"elastic.move=beside {why} or elastic.move=auto")
    if config.elastic.snapshot != "replay" and config.cluster.device.backend != "gloo":
        raise ValueError(
            f"elastic.snapshot={config.elastic.snapshot} was never run over {config.cluster.device.backend}; "
            "set elastic.snapshot=replay"
        )
    if not config.run_dir:
        raise ValueError("run_dir is empty; set it to a folder")


def only_in_a_pause(config: Any) -> str:
    """Why a planned layout cannot be made beside the steps, and what to set; nothing if it can."""
    elastic, backend = config.elastic, config.cluster.device.backend
    if elastic.release != "commit":
        return f"needs the old state, elastic.release={elastic.release} gives it back; set elastic.release=commit"
    if elastic.snapshot != "replay":
        return f"replays steps, elastic.snapshot={elastic.snapshot} keeps no gradients; set elastic.snapshot=replay"
    if backend != "gloo":
        return f"connects groups while others are in use, never tried with {backend}; set cluster.device.backend=gloo"
    return ""
