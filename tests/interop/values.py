"""A checkpoint in memory, as the source of conversions, and how tests look into others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainsys.config import ModelConfig, ParallelConfig, RunConfig
from trainsys.elastic.step_folder import StepTarget
from trainsys.interop.convert import Done, convert
from trainsys.interop.formats import Source, Target
from trainsys.interop.hf import HFTarget
from trainsys.interop.megatron import MegatronTarget
from trainsys.interop.naming import HF, OURS
from trainsys.interop.universal import UniversalTarget
from trainsys.models.geometry import resolve, tensors
from trainsys.models.init import init_box
from trainsys.space.box import Box
from trainsys.space.tensor import SLOTS, LogicalTensor

LLAMA = ModelConfig(
    vocab_size=96, dim=32, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=48, max_seq_len=32, norm_eps=1e-5
)
MODELS = {
    "llama": LLAMA,
    "tied": replace(LLAMA, tied=True),
    "qwen3": replace(LLAMA, family="qwen3", head_dim=12),
    "moe": replace(
        LLAMA, family="qwen3_moe", head_dim=12, num_experts=4, experts_per_token=2, expert_ffn_dim=24, ffn_dim=0
    ),
    "gpt2": ModelConfig(family="gpt2", vocab_size=96, dim=32, num_layers=2, num_heads=4, max_seq_len=32, tied=True),
}


class Values:
    """Masters as a model begins, ten times as large and with norms that are not all ones; moments unlike them."""

    slots: tuple[str, ...] = SLOTS
    step: int | None = 7

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        self.path, self.config, self.manifest = Path("/values"), resolve(config), {}
        self.manifest: Mapping[str, Any]
        self.values: dict[str, dict[str, Tensor]] = {slot: {} for slot in SLOTS}
        for t in tensors(config):
            master = init_box(t, (0,) * len(t.shape), t.shape, 3, config)
            master *= 10 if master.dim() == 2 else torch.linspace(0.5, 1.5, len(master))
            moments = (master.flip(0) / 3, master.square())
            for slot, value in zip(SLOTS, (master, *moments), strict=True):
                self.values[slot][t.name] = value.to(dtype)
        self.reads: list[int] = []

    def check(self, config: ModelConfig) -> None:
        assert resolve(config) == self.config

    def dtype(self, slot: str, tensor: LogicalTensor) -> torch.dtype:
        return self.values[slot][tensor.name].dtype

    def read(self, slot: str, tensor: LogicalTensor, box: Box) -> Tensor:
        self.reads.append(box.numel)
        return self.values[slot][tensor.name][box.within(Box.whole(tensor.shape))]


def write(source: Source, target: Target, path: Path) -> Done:
    """Convert without a progress bar."""
    return convert(source, target, path, {}, lambda n, name: None)


def step_folder(source: Source, path: Path, **parallel: Any) -> Path:
    """A checkpoint of ours, cut for a layout."""
    assert source.config is not None
    write(source, StepTarget(RunConfig(model=source.config, parallel=ParallelConfig(**parallel)), source, 7), path)
    return path


def assert_same(source: Source, expected: Values, slots: tuple[str, ...] = SLOTS) -> None:
    """Every tensor and a box of it, bit for bit."""
    source.check(expected.config)
    assert source.slots == slots
    for t in tensors(expected.config):
        whole = Box.whole(t.shape)
        part = Box(tuple(n // 3 for n in t.shape), tuple(n - n // 4 for n in t.shape))
        for slot in slots:
            for box in (whole, part):
                found = source.read(slot, t, box)
                assert torch.equal(found, expected.read(slot, t, box)), (slot, t.name, box)


def targets(values: Values) -> dict[str, tuple[Target, tuple[str, ...]]]:
    """What can be written, by kind and variant, and the slots in it."""
    config = values.config
    return {
        "hf": (HFTarget(config, torch.float32, 20_000), ("master",)),
        "universal": (UniversalTarget(config, HF, 7), SLOTS),
        "universal of ours": (UniversalTarget(config, OURS, 7), SLOTS),
        "megatron": (MegatronTarget(config, torch.float32, 7, True), SLOTS),
        "megatron bf16": (MegatronTarget(config, torch.bfloat16, 7, True), SLOTS),
        "megatron weights": (MegatronTarget(config, torch.float32, 7, False), ("master",)),
    }
