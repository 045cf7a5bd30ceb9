"""Save small GPT models of Megatron-Core and their optimizers as Megatron saves them, and beside it what they compute.

``python write_megatron.py [FOLDER stacked|layers|load FAMILY]... RANK RANKS PORT``; gloo, without a GPU; as many
classes of experts as ranks. `load` reads FOLDER/iter_0000002 instead. With ``_te`` behind it the norm before experts
has the name that Transformer Engine's layers give it (``get_gpt_layer_with_transformer_engine_spec``).
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from trainsys.config import ModelConfig

LLAMA = ModelConfig(vocab_size=64, dim=24, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=40, max_seq_len=16)
QWEN3 = ModelConfig(**{**vars(LLAMA), "family": "qwen3", "head_dim": 8, "tied": True})
_MOE = {"num_experts": 4, "experts_per_token": 2, "ffn_dim": 0, "expert_ffn_dim": 12, "router_aux_coef": 0.0}
MIXTRAL = ModelConfig(**{**vars(LLAMA), **_MOE, "family": "mixtral", "router_norm": True})
QWEN3_MOE = ModelConfig(**{**vars(QWEN3), **_MOE, "family": "qwen3_moe", "router_norm": False, "shared_ffn_dim": 20})
CONFIGS = {"llama": LLAMA, "qwen3": QWEN3, "mixtral": MIXTRAL, "qwen3_moe": QWEN3_MOE}
STEPS = 2


def begin(rank: int, ranks: int, port: int) -> None:
    """Megatron's groups over gloo, and its asking for GPUs answered."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["LOCAL_RANK"] = "0"
    torch.cuda.synchronize = lambda *device: None  # called without asking whether there is a GPU
    torch.cuda.current_device = lambda: "cpu"
    torch.distributed.init_process_group("gloo")
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.transformer.moe import moe_utils

    tensor_parallel.get_cuda_rng_tracker = lambda: SimpleNamespace(fork=nullcontext)  # there is no dropout
    moe_utils.te_general_gemm = None  # asked for without asking whether Transformer Engine is there
    parallel_state.initialize_model_parallel(expert_model_parallel_size=ranks)


def make(folder: Path, kind: str, ours: ModelConfig, rank: int) -> None:
    """Make, take two optimizer steps, save; or make and load."""
    from megatron.core import dist_checkpointing

    torch.manual_seed(0)
    model = build(ours, kind.endswith("_te"))
    kind = kind.removesuffix("_te")
    optimizer = stepped(model)
    metadata = {"non_homogeneous_layers": kind == "layers", "distrib_optim_sharding_type": "fully_sharded_model_space"}
    weights = model.sharded_state_dict(metadata=metadata)
    state = {"model": weights, "optimizer": optimizer.sharded_state_dict(weights), "iteration": STEPS}
    if kind == "load":
        model.load_state_dict(dist_checkpointing.load({"model": weights}, str(folder / "iter_0000002"))["model"])
        state = dist_checkpointing.load({"optimizer": state["optimizer"]}, str(folder / "iter_0000002"))
        optimizer.load_state_dict(state["optimizer"])
    else:
        (folder / "iter_0000002").mkdir(exist_ok=True)
        dist_checkpointing.save(state, str(folder / "iter_0000002"))
    tokens = torch.arange(24).view(2, 12) * 5 % ours.vocab_size
    mask = torch.ones(1, 1, 12, 12).triu(1).bool()
    logits = model.eval()(tokens, torch.arange(12).expand(2, 12), mask)
    moments = {p: state for part in optimizer.chained_optimizers for p, state in part.optimizer.state.items()}
    states = {name: {**moments[p], "master": p.detach()} for name, p in model.named_parameters()}
    torch.save({"tokens": tokens, "logits": logits.detach(), "states": states}, folder / f"held{rank}.pt")


def build(ours: ModelConfig, te_names: bool) -> Any:
    """The model of the same architecture."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    moe: dict[str, Any] = {}
    if ours.num_experts:
        moe = {
            "num_moe_experts": ours.num_experts, "moe_router_topk": ours.experts_per_token,
            "moe_ffn_hidden_size": ours.expert_ffn_dim, "moe_router_pre_softmax": not ours.router_norm,
            "moe_shared_expert_intermediate_size": ours.shared_ffn_dim or None, "moe_aux_loss_coeff": 0.0,
            "moe_shared_expert_gate": bool(ours.shared_ffn_dim), "moe_token_dispatcher_type": "allgather",
            "expert_model_parallel_size": torch.distributed.get_world_size(),
        }  # fmt: skip
    config = TransformerConfig(
        num_layers=ours.num_layers, hidden_size=ours.dim, num_attention_heads=ours.num_heads,
        num_query_groups=ours.num_kv_heads, kv_channels=ours.head_dim or ours.dim // ours.num_heads,
        ffn_hidden_size=ours.ffn_dim or ours.expert_ffn_dim, use_cpu_initialization=True, normalization="RMSNorm",
        layernorm_epsilon=ours.norm_eps, gated_linear_unit=True, add_bias_linear=False, hidden_dropout=0.0,
        attention_dropout=0.0, activation_func=torch.nn.functional.silu, bias_activation_fusion=False,
        persist_layer_norm=False, gradient_accumulation_fusion=False, masked_softmax_fusion=False,
        apply_rope_fusion=False, init_method_std=0.3, **moe,
    )  # fmt: skip
    qk_norm, experts = ours.family.startswith("qwen3"), ours.num_experts or None
    spec = get_gpt_layer_local_spec(num_experts=experts, normalization="RMSNorm", qk_layernorm=qk_norm)
    if te_names:
        del spec.submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    return GPTModel(
        config, spec, vocab_size=ours.vocab_size, max_sequence_length=ours.max_seq_len, position_embedding_type="rope",
        rotary_base=int(ours.rope_theta), share_embeddings_and_output_weights=ours.tied,
    )  # fmt: skip


def stepped(model: Any) -> Any:
    """Its fp32 optimizer after two steps on gradients of noise; experts dealt to ranks have one of their own."""
    from megatron.core.optimizer.optimizer import ChainedOptimizer, FP32Optimizer, MegatronOptimizer
    from megatron.core.optimizer.optimizer_config import OptimizerConfig

    class Optimizer(FP32Optimizer):  # type: ignore[misc]
        def __init__(self, inner: torch.optim.Optimizer, settings: OptimizerConfig) -> None:
            MegatronOptimizer.__init__(self, inner, settings, lambda *a: None)  # theirs makes CUDA tensors
            self.is_stub_optimizer = False

    parts: list[Any] = []
    settings = OptimizerConfig(lr=1e-2)
    for dealt in (False, True):
        own = [p for p in model.parameters() if getattr(p, "allreduce", True) != dealt]
        marks = {"wd_mult": 1.0, "lr_mult": 1.0, "is_expert_parallel": dealt, "is_decoupled_lr": False}
        if own:
            inner = torch.optim.AdamW([{"params": own, **marks}], lr=1e-2)
            for _ in range(STEPS):
                for parameter in own:
                    parameter.grad = torch.randn_like(parameter)
                inner.step()
            parts.append(Optimizer(inner, settings))
    return ChainedOptimizer(parts)


if __name__ == "__main__":
    *jobs, place, ranks, port = sys.argv[1:]
    begin(int(place), int(ranks), int(port))
    for path, kind, family in zip(jobs[::3], jobs[1::3], jobs[2::3], strict=True):
        make(Path(path), kind, CONFIGS[family], int(place))
