"""Hugging Face checkpoints, written and read by `transformers` itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from trainsys.config import ModelConfig
from trainsys.interop.hf import HFFolder, write_hf
from trainsys.interop.hf_names import config_from_hf, config_to_hf
from trainsys.models.geometry import resolve, tensors
from trainsys.models.init import init_box
from trainsys.models.registry import build
from trainsys.space.box import Box

LLAMA = ModelConfig(vocab_size=96, dim=32, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=48, max_seq_len=32)
GPT2 = ModelConfig(family="gpt2", vocab_size=96, dim=32, num_layers=2, num_heads=4, max_seq_len=32, tied=True)
MODELS = {"llama": LLAMA, "llama tied": ModelConfig(**{**LLAMA.__dict__, "tied": True}), "gpt2": GPT2}


def weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    return {t.name: init_box(t, (0,) * len(t.shape), t.shape, 3, config) for t in tensors(config)}


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
    values = weights(config)
    written = list(write_hf(tmp_path / "out", config, lambda n, b: values[n], torch.float32, shard_bytes))
    assert sum(size for _, size in written) == 4 * sum(t.numel for t in tensors(config))
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = torch.arange(48).view(2, 24) % config.vocab_size
    torch.testing.assert_close(theirs.eval()(tokens).logits, logits(config, values, tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_we_read_what_transformers_writes(name: str, tmp_path: Path) -> None:
    config = resolve(MODELS[name])
    torch.manual_seed(0)
    hf = transformers.AutoConfig.for_model(**config_to_hf(config, "float32"))
    theirs = transformers.AutoModelForCausalLM.from_config(hf)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    folder = HFFolder(tmp_path)
    assert resolve(folder.config) == config
    folder.check(config)
    values = {t.name: folder.read(config, t, Box.whole(t.shape)) for t in tensors(config)}
    tokens = torch.arange(48).view(2, 24) % config.vocab_size
    torch.testing.assert_close(theirs.eval()(tokens).logits, logits(config, values, tokens), atol=1e-5, rtol=0)
    for tensor in tensors(config):  # any box is the slice of the whole
        box = Box(tuple(n // 3 for n in tensor.shape), tuple(n - n // 4 for n in tensor.shape))
        part = folder.read(config, tensor, box)
        assert torch.equal(part, values[tensor.name][box.within(Box.whole(tensor.shape))])


def test_foreign_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no Hugging Face checkpoint: config\.json"):
        HFFolder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type='bert'; known: llama, gpt2"):
        HFFolder(tmp_path)
    scaled = config_to_hf(LLAMA, "float32") | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}
    with pytest.raises(ValueError, match="rope_type='llama3'"):
        config_from_hf(scaled)


def test_another_size_lists_names_and_shapes(tmp_path: Path) -> None:
    config = resolve(LLAMA)
    values = weights(config)
    for _ in write_hf(tmp_path / "out", config, lambda n, b: values[n], torch.float32):
        pass
    wider = resolve(ModelConfig(**{**LLAMA.__dict__, "ffn_dim": 64, "num_layers": 4}))
    with pytest.raises(ValueError, match=r"gate_proj\.weight is \[48, 32\], not \[64, 32\]"):
        HFFolder(tmp_path / "out").check(wider)
    with pytest.raises(ValueError, match="exists already"):
        next(iter(write_hf(tmp_path / "out", config, lambda n, b: values[n], torch.float32)))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    config = resolve(LLAMA)

    def read(name: str, box: Box) -> torch.Tensor:
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(write_hf(tmp_path / "out", config, read, torch.float32))
    assert not list(tmp_path.iterdir())
