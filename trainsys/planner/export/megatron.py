"""Arguments of Megatron-LM's ``pretrain_gpt.py`` (names as of Megatron-Core 0.13 to 0.16)."""

from __future__ import annotations

from collections.abc import Sequence

from trainsys.config import ModelConfig, RunConfig
from trainsys.models.geometry import resolve, split_layers
from trainsys.planner.export.shell import number, shell_array, torchrun
from trainsys.planner.stages import notation

_ORDERS = {"tp,cp,pp,dp": ["--use-tp-pp-dp-mapping"], "tp,cp,dp,pp": []}


def megatron_args(config: RunConfig) -> str:
    """A file to source that defines ``MEGATRON_ARGS``; data and checkpoints are the user's to add.

    ZeRO-2 and 3 are Megatron-FSDP's, ZeRO-1 its distributed optimizer. The vocabulary is not padded.

    Raises:
        ValueError: for gpipe, ragged replicas, float64, ZeRO-2 or 3 with a pipeline, or an order of axes that it lacks.
    """
    _refuse(config)
    model, parallel = resolve(config.model), config.parallel
    groups = [
        ("model", [*_model(model), *(_experts(model) if model.num_experts else ())]),
        ("layout", _layout(config)),
        ("batch", _flags(config, {"micro_batch_size": config.batch.microbatch_size,
                                  "global_batch_size": config.batch.global_size})),
        ("optimizer", _optimizer(config)),
    ]  # fmt: skip
    comments = [
        f"{notation(parallel)}, for Megatron-LM. Add the tokenizer, the data and where to save, then:",
        f'  source THIS_FILE; {torchrun(config)} pretrain_gpt.py "${{MEGATRON_ARGS[@]}}"',
    ]
    ordered = max(parallel.tp, parallel.cp) > 1 and not _fsdp(
        config
    )  # kernels of communication must start in the order of their calls
    return shell_array("MEGATRON_ARGS", groups, comments, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if ordered else {})


def _refuse(config: RunConfig) -> None:
    parallel, dtype = config.parallel, config.train.dtype
    if config.model.window:
        raise ValueError(f"--export megatron: model.window={config.model.window} is not written; set model.window=0")
    if config.model.family == "linear_llama":
        raise ValueError("--export megatron: it has no model.family=linear_llama; set model.family=llama")
    if parallel.schedule not in ("1f1b", "interleaved") and parallel.pp > 1:
        plain = "1f1b" if parallel.vp == 1 else "interleaved"
        raise ValueError(f"--export megatron: Megatron-LM has no {parallel.schedule}; add parallel.schedule={plain}")
    if parallel.recompute == "stage" or parallel.offload == "scheduled":
        raise ValueError(
            "--export megatron: its schedules have no actions for recomputation and copies; add "
            "parallel.recompute=full or parallel.offload=none"
        )
    if parallel.stage_replicas:
        raise ValueError("--export megatron: Megatron-LM has one dp for all stages; leave out parallel.stage_replicas")
    if parallel.zero >= 2 and parallel.pp > 1:
        raise ValueError(
            f"--export megatron: Megatron-FSDP, which has parallel.zero={parallel.zero}, is not combined with "
            f"parallel.pp={parallel.pp}; add parallel.zero=1 or parallel.pp=1"
        )
    if dtype == "float64":
        raise ValueError("--export megatron: Megatron-LM has no float64; set train.dtype=bfloat16 or float32")
    if parallel.order not in _ORDERS and parallel.pp > 1:
        raise ValueError(
            f"--export megatron: Megatron-LM numbers ranks along {' or '.join(_ORDERS)}, not along "
            f"parallel.order={parallel.order}; leave it out"
        )


def _fsdp(config: RunConfig) -> bool:
    return config.parallel.zero >= 2 and config.parallel.dp * config.parallel.cp > 1


def _flags(config: object, values: dict[str, object]) -> list[str]:
    """``--name value``; True is a bare flag, False and None none at all."""
    words = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(number(value) if isinstance(value, float) else str(value))
    return words


def _model(model: ModelConfig) -> list[str]:
    learned, qwen = model.family == "gpt2", model.family.startswith("qwen3")
    grouped = model.num_kv_heads < model.num_heads
    return _flags(
        model,
        {
            "num_layers": model.num_layers,
            "hidden_size": model.dim,
            "ffn_hidden_size": model.ffn_dim,
            "num_attention_heads": model.num_heads,
            "kv_channels": model.head_dim,
            "group_query_attention": grouped,
            "num_query_groups": model.num_kv_heads if grouped else None,
            "max_position_embeddings": model.max_seq_len,
            "vocab_size": model.vocab_size,
            "make_vocab_size_divisible_by": 1,
            "position_embedding_type": "learned_absolute" if learned else "rope",
            "rotary_base": None if learned else int(model.rope_theta),
            "normalization": "LayerNorm" if learned else "RMSNorm",
            "norm_epsilon": model.norm_eps,
            "swiglu": not learned,
            "disable_bias_linear": not learned,
            "qk_layernorm": qwen,
            "untie_embeddings_and_output_weights": not model.tied,
            "attention_dropout": model.dropout,
            "hidden_dropout": model.dropout,
        },
    )


def _experts(model: ModelConfig) -> list[str]:
    return _flags(
        model,
        {
            "num_experts": model.num_experts,
            "moe_router_topk": model.experts_per_token,
            "moe_ffn_hidden_size": model.expert_ffn_dim,
            "moe_shared_expert_intermediate_size": model.shared_ffn_dim or None,
            "moe_shared_expert_gate": model.shared_ffn_dim > 0,
            "moe_router_pre_softmax": not model.router_norm and model.family != "mixtral",
            "moe_router_load_balancing_type": "aux_loss" if model.router_aux_coef else "none",
            "moe_aux_loss_coeff": model.router_aux_coef or None,
            "moe_token_dispatcher_type": "alltoall",
        },
    )


def _layout(config: RunConfig) -> list[str]:
    parallel, fsdp = config.parallel, _fsdp(config)
    sharded = parallel.dp * parallel.cp > 1
    moe = resolve(config.model).num_experts > 0
    words = _flags(
        config,
        {
            "seq_length": config.batch.seq_len,
            "tensor_model_parallel_size": parallel.tp,
            "pipeline_model_parallel_size": parallel.pp,
            "context_parallel_size": parallel.cp,
            "expert_model_parallel_size": parallel.ep if moe else None,
            "expert_tensor_parallel_size": parallel.tp if moe else None,
            "sequence_parallel": parallel.sequence_parallel,
            "use_distributed_optimizer": parallel.zero >= 1 and sharded,
            "use_megatron_fsdp": fsdp,
            "data_parallel_sharding_strategy": {2: "optim_grads", 3: "optim_grads_params"}[parallel.zero]
            if fsdp
            else None,
            "ckpt_format": "fsdp_dtensor" if fsdp else None,
            "recompute_granularity": "full" if parallel.recompute == "full" else None,
            "recompute_method": "uniform" if parallel.recompute == "full" else None,
            "recompute_num_layers": 1 if parallel.recompute == "full" else None,
        },
    )
    return [*words, *_stages(config), *(_ORDERS[parallel.order] if parallel.pp > 1 else ())]


def _stages(config: RunConfig) -> Sequence[str]:
    """Which layers each run has: by number where all have equally many, else spelled out."""
    parallel = config.parallel
    layers = parallel.stage_layers or split_layers(config.model.num_layers, parallel.pp * parallel.vp)
    if len(layers) == 1:
        return ()
    if len(set(layers)) == 1:
        return ("--num-layers-per-virtual-pipeline-stage", str(layers[0])) if parallel.vp > 1 else ()
    runs = ["t" * n for n in layers]
    return ("--pipeline-model-parallel-layout", "|".join(["E" + runs[0], *runs[1:-1], runs[-1] + "L"]))


def _optimizer(config: RunConfig) -> list[str]:
    optim, train = config.optim, config.train
    return _flags(
        config,
        {
            "bf16": train.dtype == "bfloat16",
            "train_iters": train.steps,
            "seed": train.seed,
            "optimizer": "adam",
            "lr": optim.lr,
            "min_lr": optim.min_lr,
            "lr_decay_style": "cosine",
            "lr_warmup_iters": optim.warmup_steps,
            "adam_beta1": optim.betas[0],
            "adam_beta2": optim.betas[1],
            "adam_eps": optim.eps,
            "weight_decay": optim.weight_decay,
            "clip_grad": optim.clip,
        },
    )
