"""Save a small GPT model of Megatron-Core and its optimizer as Megatron saves them, and beside it what they compute.

``python write_megatron.py FOLDER stacked|layers|load FAMILY PORT``; one process, gloo, without a GPU. `load` reads
FOLDER/iter_0000002 instead.
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
CONFIGS = {"llama": LLAMA, "qwen3": QWEN3}
STEPS = 2


def main(folder: Path, kind: str, ours: ModelConfig, port: int) -> None:
    """Make, take two optimizer steps, save; or make and load."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.cuda.synchronize = lambda *device: None  # called without asking whether there is a GPU
    torch.cuda.current_device = lambda: "cpu"
    torch.distributed.init_process_group("gloo")
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel

    tensor_parallel.get_cuda_rng_tracker = lambda: SimpleNamespace(fork=nullcontext)  # there is no dropout
    parallel_state.initialize_model_parallel()
    torch.manual_seed(0)
    model = build(ours)
    optimizer = stepped(model)
    metadata = {"non_homogeneous_layers": kind == "layers", "distrib_optim_sharding_type": "fully_sharded_model_space"}
    weights = model.sharded_state_dict(metadata=metadata)
    state = {"model": weights, "optimizer": optimizer.sharded_state_dict(weights), "iteration": STEPS}
    if kind == "load":
        model.load_state_dict(dist_checkpointing.load({"model": weights}, str(folder / "iter_0000002"))["model"])
        state = dist_checkpointing.load({"optimizer": state["optimizer"]}, str(folder / "iter_0000002"))
        optimizer.load_state_dict(state["optimizer"])
    else:
        (folder / "iter_0000002").mkdir()
        dist_checkpointing.save(state, str(folder / "iter_0000002"))
    tokens = torch.arange(24).view(2, 12) * 5 % ours.vocab_size
    mask = torch.ones(1, 1, 12, 12).triu(1).bool()
    logits = model.eval()(tokens, torch.arange(12).expand(2, 12), mask)
    states = {name: optimizer.optimizer.state[p] for name, p in model.named_parameters()}
    torch.save({"tokens": tokens, "logits": logits.detach(), "states": states}, folder / "held.pt")


def build(ours: ModelConfig) -> Any:
    """The model of the same architecture."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    config = TransformerConfig(
        num_layers=ours.num_layers, hidden_size=ours.dim, num_attention_heads=ours.num_heads,
        num_query_groups=ours.num_kv_heads, kv_channels=ours.head_dim or ours.dim // ours.num_heads,
        ffn_hidden_size=ours.ffn_dim, use_cpu_initialization=True, normalization="RMSNorm",
        layernorm_epsilon=ours.norm_eps, gated_linear_unit=True, add_bias_linear=False, hidden_dropout=0.0,
        attention_dropout=0.0, activation_func=torch.nn.functional.silu, bias_activation_fusion=False,
        persist_layer_norm=False, gradient_accumulation_fusion=False, masked_softmax_fusion=False,
        apply_rope_fusion=False, init_method_std=0.3,
    )  # fmt: skip
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=ours.family == "qwen3")
    return GPTModel(
        config, spec, vocab_size=ours.vocab_size, max_sequence_length=ours.max_seq_len, position_embedding_type="rope",
        rotary_base=int(ours.rope_theta), share_embeddings_and_output_weights=ours.tied,
    )  # fmt: skip


def stepped(model: Any) -> Any:
    """Its fp32 optimizer after two steps on gradients of noise."""
    from megatron.core.optimizer.optimizer import FP32Optimizer, MegatronOptimizer
    from megatron.core.optimizer.optimizer_config import OptimizerConfig

    class Optimizer(FP32Optimizer):  # type: ignore[misc]
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            MegatronOptimizer.__init__(
                self, inner, OptimizerConfig(lr=1e-2), lambda *a: None
            )  # ours makes CUDA tensors
            self.is_stub_optimizer = False

    marks = {"wd_mult": 1.0, "lr_mult": 1.0, "is_expert_parallel": False, "is_decoupled_lr": False}
    inner = torch.optim.AdamW([{"params": list(model.parameters()), **marks}], lr=1e-2)
    for _ in range(STEPS):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        inner.step()
    return Optimizer(inner)


if __name__ == "__main__":
    path, kind, family, port = sys.argv[1:]
    main(Path(path), kind, CONFIGS[family], int(port))
