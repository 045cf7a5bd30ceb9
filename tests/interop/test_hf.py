"""Hugging Face checkpoints, written and read by `transformers` itself."""

from __future__ import annotations

import json
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch
import transformers
from values import Values, write

from trainsys.config import ModelConfig, RunConfig, TrainConfig, load
from trainsys.elastic.kinds import weights_to_start_from
from trainsys.interop.hf import HFTarget, open_hf
from trainsys.interop.hf_names import config_from_hf, config_to_hf
from trainsys.models.geometry import resolve, tensors
from trainsys.models.registry import build
from trainsys.space.box import Box

LLAMA = ModelConfig(vocab_size=96, dim=32, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=48, max_seq_len=32)
GPT2 = ModelConfig(family="gpt2", vocab_size=96, dim=32, num_layers=2, num_heads=4, max_seq_len=32, tied=True)
QWEN3 = replace(LLAMA, family="qwen3", head_dim=12, rope_theta=1e6, norm_eps=1e-6)
MIXTRAL = replace(LLAMA, family="mixtral", num_experts=4, router_aux_coef=0.02)
QWEN3_MOE = replace(QWEN3, family="qwen3_moe", num_experts=6, experts_per_token=3, ffn_dim=0, expert_ffn_dim=24)
MODELS = {
    "llama": LLAMA, "llama tied": replace(LLAMA, tied=True), "llama wide": replace(LLAMA, head_dim=16), "gpt2": GPT2,
    "qwen3": QWEN3, "qwen3 tied": replace(QWEN3, tied=True, num_kv_heads=1),
    "qwen3 derived": replace(QWEN3, head_dim=0),
    "mixtral": MIXTRAL, "qwen3 moe": QWEN3_MOE, "qwen3 moe norm tied": replace(QWEN3_MOE, tied=True, router_norm=True),
}  # fmt: skip


def write_hf(path: Path, config: ModelConfig, shard_bytes: int = 1 << 30) -> Values:
    """A folder with the values that it returns."""
    values = Values(config)
    write(values, HFTarget(resolve(config), torch.float32, shard_bytes), path)
    return values


def logits(config: ModelConfig, values: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    model = build(config, range(-1, config.num_layers + 1))
    state = dict(values)
    if config.tied:
        state["output.weight"] = values["tok_embeddings.weight"]
    model.load_state_dict(state)
    return model.eval()(tokens)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shard_bytes", [1 << 30, 8_000])
def test_transformers_reads_what_we_write(name: str, shard_bytes: int, tmp_path: Path) -> None:
    config = resolve(MODELS[name])
    values = write_hf(tmp_path / "out", config, shard_bytes).values["master"]
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 4) == (shard_bytes == 8_000)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = torch.arange(48).view(2, 24) % config.vocab_size
    torch.testing.assert_close(theirs.eval()(tokens).logits, logits(config, values, tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "fused"), [*((name, False) for name in MODELS), ("mixtral", True), ("qwen3 moe", True)]
)
def test_we_read_what_transformers_writes(name: str, fused: bool, tmp_path: Path) -> None:
    config = resolve(MODELS[name])
    torch.manual_seed(0)
    hf = transformers.AutoConfig.for_model(**config_to_hf(config, "float32"))
    theirs = transformers.AutoModelForCausalLM.from_config(hf)
    if fused and "save_original_format" not in signature(theirs.save_pretrained).parameters:
        pytest.skip("this transformers keeps experts apart")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB", **({"save_original_format": False} if fused else {}))
    folder = open_hf(tmp_path)
    assert any("gate_up_proj" in name for name in folder.tables["master"]) == fused
    assert folder.config is not None and resolve(folder.config) == config
    folder.check(config)
    values = {t.name: folder.read("master", t, Box.whole(t.shape)) for t in tensors(config)}
    tokens = torch.arange(48).view(2, 24) % config.vocab_size
    torch.testing.assert_close(theirs.eval()(tokens).logits, logits(config, values, tokens), atol=1e-5, rtol=0)
    for tensor in tensors(config):  # any box is the slice of the whole
        box = Box(tuple(n // 3 for n in tensor.shape), tuple(n - n // 4 for n in tensor.shape))
        part = folder.read("master", tensor, box)
        assert torch.equal(part, values[tensor.name][box.within(Box.whole(tensor.shape))])


def test_foreign_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no Hugging Face checkpoint: config\.json"):
        open_hf(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type='bert'; known: llama, qwen3, mixtral, qwen3_moe, gpt2"):
        open_hf(tmp_path)
    scaled = config_to_hf(LLAMA, "float32") | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}
    with pytest.raises(ValueError, match="sliding_window=4096; our mixtral has None"):
        config_from_hf(config_to_hf(MIXTRAL, "float32") | {"sliding_window": 4096})
    with pytest.raises(ValueError, match=r"mlp_only_layers=\[0\]; our qwen3_moe has \[\]"):
        config_from_hf(config_to_hf(QWEN3_MOE, "float32") | {"mlp_only_layers": [0]})
    shared = resolve(replace(QWEN3_MOE, shared_ffn_dim=8))
    with pytest.raises(ValueError, match=r"has no shared expert, .*; set model\.shared_ffn_dim=0"):
        write_hf(tmp_path / "shared", shared)
    with pytest.raises(ValueError, match="rope_type='llama3'"):
        config_from_hf(scaled)
    qwen3 = config_to_hf(QWEN3, "float32")
    for key, value, said in (
        ("attention_bias", True, "attention_bias=True; our qwen3 has False"),
        ("use_sliding_window", True, "use_sliding_window=True; our qwen3 has False"),
        (
            "layer_types",
            ["full_attention", "sliding_attention"],
            r"layer_types\[1\]='sliding_attention'; our qwen3 has",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            config_from_hf(qwen3 | {key: value})


def test_published_config_files() -> None:
    """What config.json of a published checkpoint says, in the old notation and with keys left out."""
    theirs = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_sliding_window": False,
        "vocab_size": 151936,
    }  # fmt: skip
    shipped = load([str(Path(__file__).parents[2] / "configs" / "model" / "qwen3-0.6b.yaml")]).model
    assert replace(config_from_hf(theirs), max_seq_len=shipped.max_seq_len) == shipped
    theirs |= {
        "model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_attention_heads": 64, "num_hidden_layers": 94, "num_key_value_heads": 4, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001, "tie_word_embeddings": False,
    }  # fmt: skip
    shipped = load([str(Path(__file__).parents[2] / "configs" / "model" / "qwen3-235b-a22b.yaml")]).model
    assert config_from_hf(theirs) == shipped
    theirs["model_type"] = "qwen3"
    del theirs["head_dim"]
    assert config_from_hf(theirs).head_dim == transformers.Qwen3Config().head_dim
    assert config_from_hf(config_to_hf(LLAMA, "float32") | {"head_dim": None}).head_dim == 0


def test_another_size_lists_names_and_shapes(tmp_path: Path) -> None:
    write_hf(tmp_path / "out", LLAMA)
    wider = resolve(replace(LLAMA, ffn_dim=64, num_layers=4))
    with pytest.raises(ValueError, match=r"gate_proj\.weight is \[48, 32\], not \[64, 32\]"):
        open_hf(tmp_path / "out").check(wider)
    with pytest.raises(ValueError, match="exists already"):
        write_hf(tmp_path / "out", LLAMA)


def test_another_architecture_lists_names_and_shapes(tmp_path: Path) -> None:
    """Nothing that we need may lack, and no weight of theirs may be passed over in silence."""
    write_hf(tmp_path / "qwen3", QWEN3)
    write_hf(tmp_path / "llama", replace(LLAMA, head_dim=12))
    with pytest.raises(
        ValueError, match=r"layers\.0\.self_attn\.k_norm\.weight \[12\] is not in our llama; .* 1 more$"
    ):
        open_hf(tmp_path / "qwen3").check(resolve(replace(LLAMA, head_dim=12)))
    with pytest.raises(
        ValueError, match=r"layers\.0\.self_attn\.q_norm\.weight \[12\] is missing; .* 1 more$"
    ) as error:
        open_hf(tmp_path / "llama").check(resolve(QWEN3))
    assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match=r"q_proj\.weight is \[48, 32\], not \[64, 32\]; .*k_proj\.weight is \[24, 32\]"
    ):
        open_hf(tmp_path / "qwen3").check(resolve(replace(QWEN3, head_dim=16)))
    run = RunConfig(model=LLAMA, train=TrainConfig(init_from=f"hf:{tmp_path / 'qwen3'}"))
    with pytest.raises(ValueError, match=r"has family=qwen3, the run has llama; set model\.family=qwen3"):
        weights_to_start_from(run)
