"""torchtitan: arguments of its command line (0.3), and the TOML of the release before (0.2)."""

from __future__ import annotations

from typing import Any

from trainsys.config import ModelConfig, RunConfig
from trainsys.models.geometry import resolve
from trainsys.planner.export.shell import number, shell_array, torchrun
from trainsys.planner.stages import notation

_SCHEDULES = {  # by name and whether stages have several runs of layers
    ("1f1b", False): "1F1B",
    ("gpipe", False): "GPipe",
    ("interleaved", True): "Interleaved1F1B",
    ("bfs", True): "LoopedBFS",
    ("zb1p", True): "InterleavedZeroBubble",
    ("zbv", True): "ZBVZeroBubble",
    ("dualpipev", True): "DualPipeV",
}
_SPLIT = ("zb1p", "zbv", "dualpipev")  # backward in two halves
# (family, dim, layers, vocabulary) -> module, size and flavor there; torchtitan takes sizes from its registry alone
_MODELS = {
    ("llama", 4096, 32, 128256): ("llama3", "8b", "8B"),
    ("llama", 8192, 80, 128256): ("llama3", "70b", "70B"),
    ("llama", 16384, 126, 128256): ("llama3", "405b", "405B"),
    ("qwen3", 1024, 28, 151936): ("qwen3", "0_6b", "0.6B"),
    ("qwen3", 2048, 28, 151936): ("qwen3", "1_7b", "1.7B"),
    ("qwen3", 5120, 40, 151936): ("qwen3", "14b", "14B"),
    ("qwen3", 5120, 64, 151936): ("qwen3", "32b", "32B"),
    ("qwen3_moe", 2048, 48, 151936): ("qwen3", "30b_a3b", "30B-A3B"),
}


def torchtitan_args(config: RunConfig) -> str:
    """A file to source that defines ``TITAN_ARGS``; a model that its registry lacks is left for the user to name.

    Its FSDP without resharding stands for ZeRO-1 and 2, with it for ZeRO-3: it shards gradients in any case.

    Raises:
        ValueError: for ragged layouts, tp whose layers do not fill the runs evenly, float64.
    """
    _refuse(config)
    tables = _tables(config)
    if config.parallel.pp > 1:
        tables["training"]["disable_cuda_graphs"] = True
    words = {name: _words(name, table) for name, table in tables.items()}
    module, size, _ = _MODELS.get(_key(resolve(config.model)), ("", "", ""))
    groups = [
        ("model", ["--module", module, "--config", f"{module}_{size}"] if module else []),
        *words.items(),
        ("recomputation", [f"activation_checkpoint:{'full' if config.parallel.recompute == 'full' else 'none'}"]),
    ]
    comments = [
        f"{notation(config.parallel)}, for torchtitan 0.3. Run it with",
        f'  source THIS_FILE; {torchrun(config)} -m torchtitan.train "${{TITAN_ARGS[@]}}"',
        "The optimizer is the one of its registry, with its learning rate.",
        *([] if module else ["Its registry has no model of these sizes: put --module and --config in front."]),
        *_remarks(config),
    ]
    return shell_array("TITAN_ARGS", groups, comments)


def torchtitan_toml(config: RunConfig) -> str:
    """The job file of torchtitan 0.2. Raises ValueError as `torchtitan_args` does."""
    _refuse(config)
    module, _, flavor = _MODELS.get(_key(resolve(config.model)), ("", "", ""))
    tables = _tables(config)
    tables["activation_checkpoint"] = {"mode": "full" if config.parallel.recompute == "full" else "none"}
    tables["parallelism"].pop("enable_sequence_parallel")  # always, there
    optim = config.optim
    betas = {"beta1": optim.betas[0], "beta2": optim.betas[1]}
    tables["optimizer"] = {"lr": optim.lr, **betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
    flat = {"model": {"name": module, "flavor": flavor}} if module else {}
    lines = [f"# {notation(config.parallel)}, for torchtitan 0.2", *(f"# {r}" for r in _remarks(config))]
    if not module:
        lines.append("# Its registry has no model of these sizes: add [model] with name and flavor.")
    for name, table in {**flat, **tables}.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _key(model: ModelConfig) -> tuple[str, int, int, int]:
    return model.family, model.dim, model.num_layers, model.vocab_size


def _refuse(config: RunConfig) -> None:
    parallel = config.parallel
    if config.model.window:
        raise ValueError(
            f"--export torchtitan: its models have no model.window={config.model.window}; set model.window=0"
        )
    for name in ("stage_replicas", "stage_layers"):
        if getattr(parallel, name):
            raise ValueError(f"--export torchtitan: it has no ragged layouts; leave out parallel.{name}")
    runs = parallel.pp * parallel.vp
    if parallel.vp > 1 and config.model.num_layers % runs:
        raise ValueError(
            f"--export torchtitan: parallel.pp·vp={parallel.pp}·{parallel.vp} runs must have equally many of "
            f"model.num_layers={config.model.num_layers}; add parallel.vp=1"
        )
    schedule = parallel.schedule
    if parallel.pp > 1 and (schedule, parallel.vp > 1) not in _SCHEDULES:
        known = ", ".join(dict.fromkeys(name for name, several in _SCHEDULES if several == (parallel.vp > 1)))
        raise ValueError(
            f"--export torchtitan: it has no {schedule} with parallel.vp={parallel.vp}; add parallel.schedule= one of "
            f"{known}"
        )
    if parallel.pp > 1 and parallel.zero == 3 and schedule in _SPLIT:
        raise ValueError(
            f"--export torchtitan: torch's split backward ({schedule}) loses the gradients of weights that FSDP has "
            "freed after the forward; add parallel.zero=1 or parallel.schedule=interleaved"
        )
    if parallel.recompute == "stage" or parallel.offload == "scheduled":
        raise ValueError(
            "--export torchtitan: its schedules have no actions for recomputation and copies; add "
            "parallel.recompute=full or parallel.offload=none"
        )
    if config.train.dtype == "float64":
        raise ValueError("--export torchtitan: it has no float64; set train.dtype=bfloat16 or float32")


def _remarks(config: RunConfig) -> list[str]:
    parallel = config.parallel
    return ["torchtitan has no ZeRO-1: its FSDP shards gradients too."] if parallel.zero == 1 else []


def _tables(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The sections that both forms share."""
    parallel, batch, optim = config.parallel, config.batch, config.optim
    pipelined = parallel.pp > 1
    layout: dict[str, Any] = {
        "data_parallel_replicate_degree": 1 if parallel.zero else parallel.dp,
        "data_parallel_shard_degree": parallel.dp if parallel.zero else 1,
        "fsdp_reshard_after_forward": "always" if parallel.zero == 3 else "never",
        "tensor_parallel_degree": parallel.tp,
        "enable_sequence_parallel": parallel.sequence_parallel,
        "context_parallel_degree": parallel.cp,
        "pipeline_parallel_degree": parallel.pp,
        "expert_parallel_degree": parallel.ep,
    }
    if pipelined:
        layout["pipeline_parallel_schedule"] = _SCHEDULES[parallel.schedule, parallel.vp > 1]
        layout["pipeline_parallel_microbatch_size"] = batch.microbatch_size
        if config.model.num_layers % (parallel.pp * parallel.vp) == 0:
            layout["pipeline_parallel_layers_per_stage"] = config.model.num_layers // (parallel.pp * parallel.vp)
            layout["pipeline_parallel_first_stage_less_layers"] = 0
            layout["pipeline_parallel_last_stage_less_layers"] = 0
    return {
        "training": {
            "local_batch_size": batch.global_size // parallel.dp if pipelined else batch.microbatch_size,
            "global_batch_size": batch.global_size,
            "seq_len": batch.seq_len,
            "steps": config.train.steps,
            "max_norm": optim.clip,
            "mixed_precision_param": config.train.dtype,
        },
        "parallelism": layout,
        "lr_scheduler": {
            "warmup_steps": optim.warmup_steps,
            "decay_type": "cosine",
            "min_lr_factor": optim.min_lr / optim.lr,
        },
    }


def _words(section: str, table: dict[str, Any]) -> list[str]:
    words = []
    for key, value in table.items():
        flag = f"--{section}.{key}"
        if isinstance(value, bool):
            words.append(flag if value else f"--{section}.no-{key.replace('_', '-')}")
        else:
            words += [flag, number(value) if isinstance(value, float) else str(value)]
    return words


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
