"""How our logical tensors lie in Hugging Face checkpoints. Imports no torch.

A tensor of ours may be a transposed or a fused part of one of theirs; either way each box of ours is one box of theirs,
so that any shard can be read from, or written to, its place without touching the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainsys.config import ModelConfig
from trainsys.models.geometry import resolve
from trainsys.models.vocab_parts import whole_of
from trainsys.space.box import Box


@dataclass(frozen=True)
class Part:
    """Where one of our tensors lies: rows ``[offset, offset + rows)`` of `name`, or its columns when transposed.

    With an `index` theirs has one dim more, and ours lies at that place of it.
    """

    name: str
    transposed: bool = False
    offset: int = 0
    index: int | None = None

    def box(self, box: Box) -> Box:
        """A box of ours in their coordinates."""
        start, stop = list(box.start), list(box.stop)
        start[0], stop[0] = start[0] + self.offset, stop[0] + self.offset
        if self.transposed:
            start.reverse()
            stop.reverse()
        if self.index is not None:
            start, stop = [self.index, *start], [self.index + 1, *stop]
        return Box(tuple(start), tuple(stop))


_LLAMA = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_QWEN3 = {**_LLAMA, "attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}
_ROUTER = "feed_forward.router"
_MIXTRAL = {**_LLAMA, _ROUTER: "block_sparse_moe.gate"}
_QWEN3_MOE = {**_QWEN3, _ROUTER: "mlp.gate"}
_EXPERTS = {  # family -> where expert {} lies, and what its matrices are called
    "mixtral": ("block_sparse_moe.experts.{}", {"w1": "w1", "w2": "w2", "w3": "w3"}),
    "qwen3_moe": ("mlp.experts.{}", {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}),
}
_EXPERT = re.compile(r"feed_forward\.experts\.(\d+)\.(w[123])")
_GPT2 = {
    "tok_embeddings.weight": "transformer.wte.weight",
    "pos_embeddings.weight": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "output.weight": "lm_head.weight",
    "ln_1": "ln_1",
    "ln_2": "ln_2",
    "attention.wo": "attn.c_proj",
    "feed_forward.c_fc": "mlp.c_fc",
    "feed_forward.c_proj": "mlp.c_proj",
}
_TABLES = {  # family -> names, and what their layers are called
    "llama": (_LLAMA, "model.layers"),
    "qwen3": (_QWEN3, "model.layers"),
    "mixtral": (_MIXTRAL, "model.layers"),
    "qwen3_moe": (_QWEN3_MOE, "model.layers"),
    "gpt2": (_GPT2, "transformer.h"),
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
_BUFFERS = re.compile(r".*\.(rotary_emb\.inv_freq|attn\.(masked_)?bias)")  # of older checkpoints; no weights
_FUSED = {"attention.wq": 0, "attention.wk": 1, "attention.wv": 2}  # thirds of gpt2's attn.c_attn


def part_of(config: ModelConfig, name: str, fused: bool = False) -> Part:
    """Where logical tensor `name` lies in a Hugging Face checkpoint of the same architecture.

    Args:
        fused: with a layer's experts in one tensor, as newer transformers keep them in memory and can save them.
    """
    table, layers = _TABLES[config.family]
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        whole, first = whole_of(config, name)
        return Part(table[whole], offset=first)
    layer, module, kind = match.groups()
    expert = _EXPERT.fullmatch(module)
    if fused and module == _ROUTER:
        return Part(f"{layers}.{layer}.mlp.gate.weight")
    if fused and expert is not None:
        whole = "down_proj" if expert[2] == "w2" else "gate_up_proj"
        offset = resolve(config).expert_ffn_dim if expert[2] == "w3" else 0
        return Part(f"{layers}.{layer}.mlp.experts.{whole}", offset=offset, index=int(expert[1]))
    if expert is not None:
        place, matrices = _EXPERTS[config.family]
        return Part(f"{layers}.{layer}.{place.format(expert[1])}.{matrices[expert[2]]}.{kind}")
    if config.family != "gpt2":
        return Part(f"{layers}.{layer}.{table[module]}.{kind}")
    matrix = kind == "weight" and not module.startswith("ln_")  # their Conv1D keeps [in, out]
    if module in _FUSED:
        return Part(f"{layers}.{layer}.attn.c_attn.{kind}", matrix, _FUSED[module] * config.dim)
    return Part(f"{layers}.{layer}.{table[module]}.{kind}", matrix)


def check(config: ModelConfig) -> None:
    """Raises ValueError for a model that theirs cannot be."""
    if config.family not in _TABLES:
        raise ValueError(f"model.family={config.family} has no Hugging Face form; use one of {', '.join(_TABLES)}")
    if config.shared_ffn_dim:
        raise ValueError(
            f"a Hugging Face {config.family} has no shared expert, ours has "
            f"model.shared_ffn_dim={config.shared_ffn_dim}; set model.shared_ffn_dim=0"
        )


def ignorable(config: ModelConfig, name: str) -> bool:
    """Whether their tensor `name` says nothing that our model does not have: a buffer, or a tied head written twice."""
    return bool(_BUFFERS.fullmatch(name)) or (config.tied and name == _TABLES[config.family][0]["output.weight"])


def config_to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint with this architecture."""
    if config.window:
        raise ValueError(
            f"model.window={config.window} has no place in Hugging Face's {config.family}; set model.window=0"
        )
    config = resolve(config)
    common = {
        "architectures": [_CLASSES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "dtype": dtype,
    }
    if config.family != "gpt2":
        return {
            **common,
            "hidden_size": config.dim,
            "intermediate_size": config.ffn_dim,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": config.max_seq_len,
            "rms_norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta,
            "hidden_act": "silu",
            "attention_bias": False,
            **_own_keys(config),
        }
    return {
        **common,
        "n_embd": config.dim,
        "n_inner": config.ffn_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
    }


def _own_keys(config: ModelConfig) -> dict[str, Any]:
    """What ``config.json`` says of one family alone."""
    if config.family == "llama":
        return {"mlp_bias": False}
    if config.family == "qwen3":
        return {"use_sliding_window": False}
    routing = {"num_experts_per_tok": config.experts_per_token, "router_aux_loss_coef": config.router_aux_coef}
    if config.family == "mixtral":
        return {**routing, "num_local_experts": config.num_experts, "sliding_window": None}
    return {
        **routing, "num_experts": config.num_experts, "moe_intermediate_size": config.expert_ffn_dim,
        "norm_topk_prob": config.router_norm, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "use_sliding_window": False,
    }  # fmt: skip


def _experts_from_hf(kind: str, hf: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields about experts; newer transformers write ``num_local_experts`` for both families."""
    if kind not in _EXPERTS:
        return {}
    number = next(hf[key] for key in ("num_experts", "num_local_experts") if key in hf)
    width = hf["intermediate_size" if kind == "mixtral" else "moe_intermediate_size"]
    return {
        "num_experts": number, "experts_per_token": hf["num_experts_per_tok"], "expert_ffn_dim": width, "ffn_dim": 0,
        "router_norm": kind == "mixtral" or hf.get("norm_topk_prob", False),
        "router_aux_coef": hf.get("router_aux_loss_coef", 0.001),
    }  # fmt: skip


def config_from_hf(hf: Mapping[str, Any], dropout: float = 0.0) -> ModelConfig:
    """Our architecture of a ``config.json``.

    Raises:
        ValueError: for a model type, or a variant of it, that we do not have.
    """
    kind = hf.get("model_type")
    if kind == "gpt2":
        return ModelConfig(
            family="gpt2", vocab_size=hf["vocab_size"], dim=hf["n_embd"], num_layers=hf["n_layer"],
            num_heads=hf["n_head"], ffn_dim=hf.get("n_inner") or 4 * hf["n_embd"], max_seq_len=hf["n_positions"],
            norm_eps=hf["layer_norm_epsilon"], tied=hf.get("tie_word_embeddings", True), dropout=dropout,
        )  # fmt: skip
    if kind not in _TABLES:
        raise ValueError(f"config.json has model_type={kind!r}; known: {', '.join(_TABLES)}")
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    _check_plain(kind, hf)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(f"config.json has rope_type={rope.get('rope_type', rope.get('type'))!r}; ours is 'default'")
    ours = ModelConfig(
        family=kind, vocab_size=hf["vocab_size"], dim=hf["hidden_size"], num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"], num_kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
        head_dim=hf.get("head_dim") or (128 if kind == "qwen3" else 0),  # what their classes take for granted
        ffn_dim=hf["intermediate_size"], max_seq_len=hf["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta", hf.get("rope_theta", 10000.0))), norm_eps=hf["rms_norm_eps"],
        tied=hf.get("tie_word_embeddings", False),
    )  # fmt: skip
    return replace(ours, **_experts_from_hf(kind, hf))


def _check_plain(kind: str, hf: Mapping[str, Any]) -> None:
    """Whether theirs has no option that our Llama's kin lack. Raises ValueError."""
    plain: dict[str, Any] = {
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "hidden_act": "silu",
    }
    if kind in _EXPERTS:
        plain |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "router_jitter_noise": 0.0}
    if kind == "mixtral":
        plain["sliding_window"] = None
    for key, value in plain.items():
        if hf.get(key, value) != value:
            raise ValueError(f"config.json has {key}={hf[key]!r}; our {kind} has {value!r}")
    sliding = [i for i, layer in enumerate(hf.get("layer_types") or ()) if layer != "full_attention"]
    if sliding:
        i = sliding[0]
        raise ValueError(f"config.json has layer_types[{i}]={hf['layer_types'][i]!r}; our {kind} has 'full_attention'")
