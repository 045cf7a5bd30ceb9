"""Logits against the `transformers` implementations, same weights, random and offline."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainsys.config import ModelConfig
from trainsys.models.registry import build

transformers = pytest.importorskip("transformers")
L, DIM, VOCAB, S = 2, 48, 100, 24


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    x = torch.randint(VOCAB, (3, S), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = ours.eval()(x), theirs.eval()(x).logits
    assert a.std() > 0.05  # logits large enough for the comparison to mean something
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_llama(kv_heads: int, tied: bool) -> None:
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=DIM, intermediate_size=80, num_hidden_layers=L, num_attention_heads=4,
            num_key_value_heads=kv_heads, max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0}, initializer_range=0.2,
        )
    )  # fmt: skip
    config = ModelConfig(
        "llama", VOCAB, DIM, L, num_heads=4, num_kv_heads=kv_heads, ffn_dim=80, rope_theta=500.0, norm_eps=1e-6,
        tied=tied,
    )  # fmt: skip
    assert_same(filled(config, theirs), theirs)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("head_dim", [12, 20])
@pytest.mark.parametrize("tied", [False, True])
def test_qwen3(kv_heads: int, head_dim: int, tied: bool) -> None:
    """Also with heads whose features together are more than the stream's."""
    torch.manual_seed(0)
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=VOCAB, hidden_size=DIM, intermediate_size=80, num_hidden_layers=L, num_attention_heads=4,
            num_key_value_heads=kv_heads, head_dim=head_dim, max_position_embeddings=64, rms_norm_eps=1e-6,
            tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            initializer_range=0.2,
        )
    )  # fmt: skip
    config = ModelConfig(
        "qwen3", VOCAB, DIM, L, num_heads=4, num_kv_heads=kv_heads, head_dim=head_dim, ffn_dim=80, rope_theta=500.0,
        norm_eps=1e-6, tied=tied,
    )  # fmt: skip
    assert_same(filled(config, theirs), theirs)


def filled(config: ModelConfig, theirs: nn.Module) -> nn.Module:
    """Our Llama or Qwen3 with the weights of theirs, whose norms are first made to matter."""
    for name, p in theirs.named_parameters():
        if "norm" in name:
            nn.init.uniform_(p, 0.5, 1.5)
    qk_norm = config.family == "qwen3"
    names = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    for i in range(L):
        names |= {
            f"layers.{i}.{ours}": f"model.layers.{i}.{hf}"
            for ours, hf in {
                "attention_norm": "input_layernorm",
                "attention.wq": "self_attn.q_proj",
                "attention.wk": "self_attn.k_proj",
                "attention.wv": "self_attn.v_proj",
                "attention.wo": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm",
                "feed_forward.w1": "mlp.gate_proj",
                "feed_forward.w3": "mlp.up_proj",
                "feed_forward.w2": "mlp.down_proj",
                **({"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"} if qk_norm else {}),
            }.items()
        }
    ours = build(config, range(-1, L + 1))
    state = theirs.state_dict()
    ours.load_state_dict({f"{a}.weight": state[f"{b}.weight"] for a, b in names.items()})
    return ours


@pytest.mark.parametrize("tied", [False, True])
def test_gpt2(tied: bool) -> None:
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=64, n_embd=DIM, n_layer=L, n_head=4, initializer_range=0.2,
            tie_word_embeddings=tied,
        )
    )  # fmt: skip
    for p in theirs.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, mean=0.5, std=0.5)
    state = theirs.state_dict()
    mapped = {
        "tok_embeddings.weight": state["transformer.wte.weight"],
        "pos_embeddings.weight": state["transformer.wpe.weight"],
        "norm.weight": state["transformer.ln_f.weight"],
        "norm.bias": state["transformer.ln_f.bias"],
        "output.weight": state["lm_head.weight"],
    }
    for i in range(L):
        for kind in ("weight", "bias"):
            theirs_i = {k: state[f"transformer.h.{i}.{k}.{kind}"] for k in (
                "ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
            )}  # fmt: skip
            if kind == "weight":  # theirs are [in, out]
                theirs_i = {k: v.T if v.dim() == 2 else v for k, v in theirs_i.items()}
            q, k, v = theirs_i["attn.c_attn"].chunk(3)
            mapped |= {
                f"layers.{i}.{name}.{kind}": value
                for name, value in {
                    "ln_1": theirs_i["ln_1"],
                    "attention.wq": q,
                    "attention.wk": k,
                    "attention.wv": v,
                    "attention.wo": theirs_i["attn.c_proj"],
                    "ln_2": theirs_i["ln_2"],
                    "feed_forward.c_fc": theirs_i["mlp.c_fc"],
                    "feed_forward.c_proj": theirs_i["mlp.c_proj"],
                }.items()
            }
    config = ModelConfig("gpt2", VOCAB, DIM, L, num_heads=4, max_seq_len=64, tied=tied, dropout=0.1)
    ours = build(config, range(-1, L + 1))
    ours.load_state_dict(mapped)
    assert_same(ours, theirs)
