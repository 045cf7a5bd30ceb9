"""DeepSpeed's JSON: batch, precision, ZeRO, automatic tensor parallelism, optimizer and its schedule."""

from __future__ import annotations

import json
from typing import Any

from trainsys.config import RunConfig


def deepspeed_json(config: RunConfig) -> str:
    """The file that ``deepspeed.initialize(config=…)`` reads. DeepSpeed never sees the model's sizes.

    Raises:
        ValueError: for what no JSON of DeepSpeed's says: a pipeline (it is a ``PipelineModule`` in the script), cp
            (its sequence parallelism is Ulysses, another exchange), ep (set where the layer is made), tp with ZeRO-3,
            recomputation (the script calls ``deepspeed.checkpointing``), float64.
    """
    _refuse(config)
    batch, parallel, optim = config.batch, config.parallel, config.optim
    answer: dict[str, Any] = {
        "train_batch_size": batch.global_size,
        "train_micro_batch_size_per_gpu": batch.microbatch_size,
        "gradient_accumulation_steps": batch.global_size // (batch.microbatch_size * parallel.dp),
        "gradient_clipping": optim.clip,
        "zero_optimization": {"stage": parallel.zero},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optim.lr,
                "betas": list(optim.betas),
                "eps": optim.eps,
                "weight_decay": optim.weight_decay,
            },
        },
        "scheduler": {
            "type": "WarmupCosineLR",
            "params": {
                "total_num_steps": config.train.steps,
                "warmup_num_steps": optim.warmup_steps,
                "cos_min_ratio": optim.min_lr / optim.lr,
            },
        },
    }
    if config.train.dtype == "bfloat16":
        answer["bf16"] = {"enabled": True}
    if parallel.tp > 1:
        answer["tensor_parallel"] = {"autotp_size": parallel.tp}
    return json.dumps(answer, indent=2) + "\n"


def _refuse(config: RunConfig) -> None:
    parallel, rules = config.parallel, {}
    rules["pp"] = parallel.pp > 1 and "a pipeline is a PipelineModule in the script"
    rules["cp"] = parallel.cp > 1 and "its sequence parallelism (Ulysses) is another exchange"
    rules["ep"] = parallel.ep > 1 and "the script says it where it makes the layer"
    for axis, why in rules.items():
        if why:
            raise ValueError(
                f"--export deepspeed: its JSON cannot say parallel.{axis}={getattr(parallel, axis)} ({why}); "
                f"add parallel.{axis}=1"
            )
    if parallel.stage_replicas:
        raise ValueError("--export deepspeed: it has no ragged layouts; leave out parallel.stage_replicas")
    if parallel.tp > 1 and parallel.zero == 3:
        raise ValueError(
            f"--export deepspeed: automatic tensor parallelism (parallel.tp={parallel.tp}) goes up to ZeRO-2; "
            "add parallel.zero=2 or parallel.tp=1"
        )
    if parallel.recompute != "none":
        raise ValueError(
            f"--export deepspeed: its JSON cannot say parallel.recompute={parallel.recompute} (the script calls "
            "deepspeed.checkpointing); add parallel.recompute=none"
        )
    if config.train.dtype == "float64":
        raise ValueError("--export deepspeed: it has no float64; set train.dtype=bfloat16 or float32")
    if config.optim.lr <= 0:
        raise ValueError(f"--export deepspeed: optim.lr={config.optim.lr:g} must be positive")
