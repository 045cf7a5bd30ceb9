"""Sizes, splits and FLOPs of the model families, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainsys import config
from trainsys.config import ModelConfig
from trainsys.models import geometry
from trainsys.space.tensor import EMBED

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))


def test_geometry_does_not_import_torch() -> None:
    code = "import sys, trainsys.models.geometry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_resolve_fills_the_derived_sizes_and_is_idempotent() -> None:
    llama = geometry.resolve(ModelConfig(dim=4096, num_heads=32))
    assert (llama.num_kv_heads, llama.ffn_dim) == (32, 10944)  # 8/3 · 4096 = 10922.7, rounded up to 32
    assert geometry.resolve(ModelConfig(family="gpt2", dim=768, num_heads=12)).ffn_dim == 3072
    assert llama.head_dim == 128
    assert geometry.resolve(llama) == llama
    wide = geometry.resolve(ModelConfig(family="qwen3", dim=100, num_heads=6, head_dim=32))
    assert (wide.head_dim, wide.ffn_dim) == (32, 300)
    assert geometry.resolve(wide) == wide


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"family": "mamba"},
            "unknown model.family='mamba'; known: gpt2, linear_llama, llama, mixtral, qwen3, qwen3_moe",
        ),
        (
            {"dim": 100, "num_heads": 6},
            "model.dim=100 is not divisible by model.num_heads=6; set model.dim=96 or 102, or model.num_heads=",
        ),
        (
            {"num_heads": 4, "num_kv_heads": 3},
            "model.num_heads=4 is not divisible by model.num_kv_heads=3; set model.num_kv_heads=1, 2 or 4",
        ),
        ({"dim": 12, "num_heads": 4}, "model.head_dim=3 .* is odd, .*; set model.dim=16"),
        ({"dim": 12, "num_heads": 4, "head_dim": 5}, "^model.head_dim=5 is odd, .*; set model.head_dim=6$"),
        ({"head_dim": -1}, "model.head_dim=-1 must be positive, or 0 to derive it"),
        (
            {"family": "gpt2", "head_dim": 16},
            "gpt2 divides model.dim=128 among model.num_heads=4, got model.head_dim=16; set model.head_dim=0",
        ),
        ({"dropout": 0.1}, "llama has no dropout"),
        ({"family": "qwen3", "dropout": 0.1}, "qwen3 has no dropout"),
        ({"dropout": 1.0}, r"model.dropout=1 must lie in \[0, 1\)"),
        ({"family": "gpt2", "num_kv_heads": 2}, "model.num_kv_heads=2 must be 0 or model.num_heads=4"),
        (
            {"num_experts": 4},
            "got model.num_experts=4; set model.family=mixtral or qwen3_moe, or drop model.num_experts$",
        ),
        ({"family": "mixtral"}, "mixtral needs experts, got model.num_experts=0; set model.num_experts=8$"),
        (
            {"family": "qwen3_moe", "num_experts": 4, "experts_per_token": 5},
            "model.experts_per_token=5 must lie between 1 and model.num_experts=4$",
        ),
        (
            {"family": "mixtral", "num_experts": 4, "ffn_dim": 64, "expert_ffn_dim": 32},
            "mixtral has no dense feed-forward: model.ffn_dim=64 must be 0 or model.expert_ffn_dim=32$",
        ),
        ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
        ({"ffn_dim": -1}, "model.ffn_dim=-1 must be positive"),
    ],
)
def test_resolve_rejects_impossible_sizes(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        geometry.resolve(ModelConfig(**sizes))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tp", "stages", "message"),
    [
        (8, (4,), "model.num_heads=12 is not divisible by parallel.tp=8; set parallel.tp=1, 2, 4 or 12$"),
        (
            6,
            (4,),
            "model.num_kv_heads=4 and parallel.tp=6: neither is divisible by the other; set parallel.tp=1, 2, 4 or 12$",
        ),
        (
            3,
            (4,),
            "model.num_kv_heads=4 and parallel.tp=3: neither is divisible by the other; set parallel.tp=1, 2, 4 or 12$",
        ),
        (0, (4,), "tp=0 must be at least 1"),
        (
            1,
            (0, 4),
            r"stage 0 of parallel.stage_layers=\(0, 4\) has no layer; an even split of model.num_layers=4 is \(2, 2\)",
        ),
        (1, (1, 2), "adds up to 3, but model.num_layers=4"),
        (1, (1, 1, 1, 1, 1), "has 5 stages for model.num_layers=4; set parallel.pp between 1 and 4"),
        (1, (), "has 0 stages"),
    ],
)
def test_check_split_names_the_legal_values(tp: int, stages: tuple[int, ...], message: str) -> None:
    model = ModelConfig(vocab_size=1536, dim=96, num_layers=4, num_heads=12, num_kv_heads=4, ffn_dim=192)
    for legal in (1, 2, 4, 12):
        geometry.check_split(model, legal, (1, 3))
    with pytest.raises(ValueError, match=message):
        geometry.check_split(model, tp, stages)


def test_check_split_offers_a_padded_vocabulary() -> None:
    gpt2 = ModelConfig(family="gpt2", vocab_size=50257, dim=768, num_heads=12)
    with pytest.raises(
        ValueError,
        match=r"=50257 is not divisible by parallel\.tp=4; set parallel\.tp=1, or model\.vocab_size=50256 or 50260",
    ):
        geometry.check_split(gpt2, 4, (4,))


def test_neighbours_share_a_key_value_head_where_ranks_outnumber_them() -> None:
    model = geometry.resolve(ModelConfig(num_layers=1, num_heads=8, num_kv_heads=2))
    tensors = {t.name.removeprefix("layers.0."): t for t in geometry.tensors(model)}
    wk = tensors["attention.wk.weight"]
    assert [wk.local_box(8, rank) for rank in range(8)] == [wk.local_box(2, head) for head in (0, 0, 0, 0, 1, 1, 1, 1)]
    assert [wk.first_copy(8, rank) for rank in range(8)] == [0, 0, 0, 0, 4, 4, 4, 4]
    assert [wk.first_copy(2, rank) for rank in range(2)] == [0, 1]
    assert str(wk.token()) == "layers.0.attention.wk.weight[32/min(tp, 2), 128]"
    once = geometry.forward_flops(model, 0, 64)
    kv = 2 * 2 * 32 * 128  # FLOPs per token of both projections, which are halved and not cut in eight
    assert 8 * geometry.forward_flops(model, 0, 64, tp=8) == pytest.approx(once + 3 * kv)
    assert 2 * geometry.forward_flops(model, 0, 64, tp=2) == pytest.approx(once)


def test_split_layers() -> None:
    assert geometry.split_layers(8, 4) == (2, 2, 2, 2)
    assert geometry.split_layers(7, 3) == (2, 2, 3)
    assert geometry.split_layers(6, 4) == (1, 1, 2, 2)
    with pytest.raises(
        ValueError, match=r"model\.num_layers=2 cannot fill parallel\.pp=3 stages; set parallel\.pp between 1 and 2"
    ):
        geometry.split_layers(2, 3)


def test_tied_head_is_the_embedding_used_twice() -> None:
    tied, untied = (ModelConfig(tied=t, num_layers=3) for t in (True, False))
    assert geometry.tensors(tied)[0].blocks == (EMBED, 3)
    assert geometry.tensors(untied)[0].blocks == (EMBED,)
    assert {t.name for t in geometry.tensors(untied)} - {t.name for t in geometry.tensors(tied)} == {"output.weight"}
    assert geometry.logical_name(tied, "output.weight") == "tok_embeddings.weight"
    assert geometry.logical_name(untied, "output.weight") == "output.weight"
    assert geometry.logical_name(tied, "norm.weight") == "norm.weight"


def test_parameters_of_published_models() -> None:
    assert geometry.num_params(config.load([str(CONFIGS[0].parent / "llama-8b.yaml")]).model) == 8_030_261_248
    gpt2 = ModelConfig("gpt2", 50257, dim=768, num_layers=12, num_heads=12, max_seq_len=1024, tied=True)
    assert geometry.num_params(gpt2) == 124_439_808
    assert geometry.num_params(config.load([str(CONFIGS[0].parent / "qwen3-0.6b.yaml")]).model) == 596_049_920
    assert geometry.num_params(config.load([str(CONFIGS[0].parent / "mixtral-8x7b.yaml")]).model) == 46_702_792_704
    assert geometry.num_params(config.load([str(CONFIGS[0].parent / "qwen3-235b-a22b.yaml")]).model) == 235_093_634_560


@pytest.mark.parametrize(("name", "billions"), [("mixtral-8x7b", 12.88), ("qwen3-235b-a22b", 22.19)])
def test_flops_count_the_active_experts(name: str, billions: float) -> None:
    """A token uses the published number of active parameters, of which its row of the embedding is no product."""
    model = config.load([str(CONFIGS[0].parent / f"{name}.yaml")]).model
    products = sum(geometry.forward_flops(model, block, 0) for block in range(EMBED, model.num_layers + 1)) / 2
    assert (products + model.vocab_size * model.dim) / 1e9 == pytest.approx(billions, abs=0.01)


def test_forward_flops_of_gpt3_match_the_published_formula() -> None:
    """Narayanan et al. 2021, eq. 3 without recompute: 3·24·B·s·l·h²(1 + s/6h + V/16lh) for forward and backward."""
    s, layers, h, v = 2048, 96, 12288, 51200
    gpt3 = ModelConfig("gpt2", v, dim=h, num_layers=layers, num_heads=96, max_seq_len=s, tied=True)
    ours = 3 * sum(geometry.forward_flops(gpt3, block, s) for block in range(EMBED, layers + 1))
    assert ours == pytest.approx(72 * layers * h**2 * (1 + s / (6 * h) + v / (12 * layers * h)))
    assert geometry.forward_flops(gpt3, EMBED, s) == 0
    assert geometry.forward_flops(gpt3, layers, s) == 2 * h * v


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_split_in_two(path: Path) -> None:
    model = config.load([str(path)]).model
    geometry.check_split(model, 2, geometry.split_layers(model.num_layers, 4))
    for tensor in geometry.tensors(model):
        assert tensor.split is None or tensor.shape[tensor.split] % 2 == 0
