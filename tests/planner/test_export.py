"""What is written for other frameworks, read by their own parsers where they are installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tomllib
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainsys.config import BatchConfig, ParallelConfig, RunConfig, load
from trainsys.models.geometry import resolve, split_layers
from trainsys.planner.export.registry import EXPORTS, best_export, export


@pytest.fixture(scope="module")
def llama() -> RunConfig:
    """Llama 8B on 32 H100."""
    files = ["configs/model/llama-8b.yaml", "configs/cluster/dgx-h100-4.yaml", "train.dtype=bfloat16"]
    return replace(load(files), batch=BatchConfig(128, 2, 4096))


def laid_out(config: RunConfig, **parallel: Any) -> RunConfig:
    return replace(config, parallel=ParallelConfig(**parallel))


def words(text: str, folder: Path) -> list[str]:
    """The array that the file defines, as bash reads it."""
    path = folder / "args.sh"
    path.write_text(text)
    name = next(line.partition("=")[0] for line in text.splitlines() if line.endswith("=("))
    said = subprocess.run(
        ["bash", "-euc", f"source {path}; printf '%s\\0' \"${{{name}[@]}}\""], capture_output=True, check=True
    )
    return said.stdout.decode().split("\0")[:-1]


def flags(found: list[str]) -> dict[str, str]:
    """--name value -> {name: value}; bare flags are true."""
    pairs = dict[str, str]()
    for word in found:
        if word.startswith("--"):
            name = word[2:]
            pairs[name] = "true"
        else:
            pairs[name] = word
    return pairs


def test_megatron_gets_every_degree_and_size(llama: RunConfig, tmp_path: Path) -> None:
    config = laid_out(llama, dp=4, tp=2, pp=2, vp=2, cp=2, zero=1, sequence_parallel=True, schedule="interleaved")
    text = export("megatron", config)
    assert "torchrun --nnodes 4 --nproc-per-node 8 pretrain_gpt.py" in text
    assert "export CUDA_DEVICE_MAX_CONNECTIONS=1" in text
    found = flags(words(text, tmp_path))
    expected = {
        "tensor-model-parallel-size": "2", "pipeline-model-parallel-size": "2", "context-parallel-size": "2",
        "num-layers-per-virtual-pipeline-stage": "8", "micro-batch-size": "2", "global-batch-size": "128",
        "seq-length": "4096", "num-query-groups": "8", "ffn-hidden-size": "14336", "vocab-size": "128256",
        "use-distributed-optimizer": "true", "sequence-parallel": "true", "use-tp-pp-dp-mapping": "true",
        "swiglu": "true", "untie-embeddings-and-output-weights": "true", "bf16": "true", "adam-beta2": "0.95",
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    assert not {"recompute-granularity", "use-megatron-fsdp", "num-experts"} & set(found)


RENAMED = {
    "norm_epsilon": "layernorm_epsilon", "swiglu": "gated_linear_unit", "num_experts": "num_moe_experts",
    "group_query_attention": "", "disable_bias_linear": "", "num_layers_per_virtual_pipeline_stage": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "parallel", "layers"),
    [
        ("llama-8b", {"dp": 4, "tp": 2, "pp": 4, "sequence_parallel": True}, 30),
        ("llama-8b", {"dp": 32, "zero": 3, "recompute": "full"}, 32),
        ("mixtral-8x7b", {"dp": 8, "pp": 4, "ep": 8}, 32),
        ("qwen3-0.6b", {"dp": 8, "tp": 4}, 28),
        ("gpt2-tiny", {"dp": 8, "pp": 4}, 4),
    ],
)
def test_megatron_core_takes_it(
    llama: RunConfig, tmp_path: Path, family: str, parallel: dict[str, Any], layers: int
) -> None:
    """Its TransformerConfig checks what belongs together; an uneven pipeline's layers are ours."""
    try:
        from megatron.core.transformer import TransformerConfig
    except ImportError:
        pytest.skip("Megatron-Core is not installed")
    model = replace(load([f"configs/model/{family}.yaml"]).model, num_layers=layers)
    config = laid_out(replace(llama, model=model), **parallel)
    found = flags(words(export("megatron", config), tmp_path))
    types = {f.name: f for f in fields(TransformerConfig)}
    given: dict[str, Any] = {"add_bias_linear": "disable-bias-linear" not in found, "pipeline_dtype": torch.bfloat16}
    for name, value in found.items():
        key = RENAMED.get(name.replace("-", "_"), name.replace("-", "_"))
        if key in types:
            given[key] = True if value == "true" else _typed(value)
    made = TransformerConfig(**given)
    shape = resolve(model)
    assert (made.num_layers, made.hidden_size, made.ffn_hidden_size) == (layers, shape.dim, shape.ffn_dim)
    assert made.num_moe_experts == (shape.num_experts or None)
    if layers % config.parallel.pp:
        stages = made.pipeline_model_parallel_layout.layout
        counts = tuple(sum(kind.name == "decoder" for run in stage for kind in run) for stage in stages)
        assert counts == split_layers(layers, config.parallel.pp)


def _typed(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


@pytest.mark.parametrize("parallel", [{"dp": 32, "zero": 3}, {"dp": 8, "tp": 4, "zero": 1}, {"dp": 32}])
def test_deepspeed_takes_its_json(llama: RunConfig, parallel: dict[str, Any]) -> None:
    config = laid_out(llama, **parallel)
    said = json.loads(export("deepspeed", config))
    assert said["train_micro_batch_size_per_gpu"] * said["gradient_accumulation_steps"] * config.parallel.dp == 128
    try:
        from deepspeed.runtime.config import DeepSpeedConfig
    except ImportError:
        pytest.skip("DeepSpeed is not installed")

    class Grid:
        """Only asked for its data-parallel size; without one DeepSpeed takes a world of one."""

        def get_data_parallel_world_size(self) -> int:
            return config.parallel.dp

    read = _without_ranks(DeepSpeedConfig, said, Grid())
    assert read.zero_optimization_stage == config.parallel.zero
    assert read.bfloat16_config.enabled
    assert read.train_batch_size == 128
    assert read.gradient_clipping == config.optim.clip
    assert read.tensor_parallel_config.autotp_size == (4 if config.parallel.tp == 4 else 0)


def _without_ranks(kind: Any, said: dict[str, Any], grid: Any) -> Any:
    from deepspeed import comm

    before, comm.get_rank = comm.get_rank, lambda *_: 0
    try:
        return kind(said, mpu=grid)
    finally:
        comm.get_rank = before


TITANS = [
    {"dp": 8, "tp": 2, "pp": 2, "vp": 2, "zero": 1, "schedule": "interleaved", "sequence_parallel": True},
    {"dp": 32, "zero": 3, "recompute": "full"},
    {"dp": 4, "cp": 2, "tp": 4},
    {"dp": 8, "pp": 4, "schedule": "gpipe", "zero": 2},
]


@pytest.mark.parametrize("parallel", TITANS)
def test_torchtitan_takes_its_arguments(llama: RunConfig, tmp_path: Path, parallel: dict[str, Any]) -> None:
    """Its own dataclasses, read by its own rules of parsing; the model's registry needs a GPU's packages."""
    found = words(export("torchtitan", laid_out(llama, **parallel)), tmp_path)
    assert found[:4] == ["--module", "llama3", "--config", "llama3_8b"]
    if importlib.util.find_spec("torchtitan") is None:
        pytest.skip("torchtitan is not installed")
    tyro = pytest.importorskip("tyro")
    from torchtitan.components.optimizer import LRSchedulersContainer
    from torchtitan.config import ParallelismConfig, TrainingConfig
    from torchtitan.config.manager import ConfigManager, custom_registry
    from torchtitan.distributed.activation_checkpoint import ActivationCheckpointingConfig, SelectiveAC

    ConfigManager()
    parts = [
        ("training", TrainingConfig, field(default_factory=TrainingConfig)),
        ("parallelism", ParallelismConfig, field(default_factory=ParallelismConfig)),
        ("lr_scheduler", LRSchedulersContainer.Config, field(default_factory=LRSchedulersContainer.Config)),
        ("activation_checkpoint", ActivationCheckpointingConfig, field(default_factory=SelectiveAC.Config)),
    ]
    read = tyro.cli(make_dataclass("Job", parts), args=found[4:], registry=custom_registry)
    layout, given = read.parallelism, ParallelConfig(**parallel)
    degrees = layout.data_parallel_replicate_degree * layout.data_parallel_shard_degree
    assert (degrees, layout.tensor_parallel_degree, layout.pipeline_parallel_degree) == (given.dp, given.tp, given.pp)
    assert layout.context_parallel_degree == given.cp
    assert layout.enable_sequence_parallel == given.sequence_parallel
    assert (layout.data_parallel_shard_degree > 1) == (given.zero > 0)
    assert (read.activation_checkpoint is None) == (given.recompute == "none")
    local = read.training.local_batch_size
    assert local == (128 // given.dp if given.pp > 1 else 2)
    assert read.training.global_batch_size % (local * given.dp) == 0


def test_the_toml_says_the_same_as_the_arguments(llama: RunConfig, tmp_path: Path) -> None:
    for parallel in TITANS:
        config = laid_out(llama, **parallel)
        tables = tomllib.loads(export("torchtitan-toml", config))
        found = flags(words(export("torchtitan", config), tmp_path)[4:])
        for section in ("training", "parallelism"):
            for key, value in tables[section].items():
                text = f"{value:g}" if isinstance(value, float) else str(value)
                assert found[f"{section}.{key}"].split()[0] == text.split()[0], (section, key)
        assert tables["model"] == {"name": "llama3", "flavor": "8B"}


@dataclass
class Refusal:
    target: str
    parallel: dict[str, Any]
    message: str


REFUSALS = [
    Refusal("deepspeed", {"pp": 2}, "cannot say parallel.pp=2 .*add parallel.pp=1"),
    Refusal("deepspeed", {"cp": 2}, "cannot say parallel.cp=2"),
    Refusal("deepspeed", {"tp": 2, "zero": 3}, "goes up to ZeRO-2"),
    Refusal("deepspeed", {"recompute": "full"}, "add parallel.recompute=none"),
    Refusal("megatron", {"pp": 2, "schedule": "gpipe"}, "has no gpipe; add parallel.schedule=1f1b"),
    Refusal("megatron", {"dp": 2, "pp": 2, "zero": 3}, "add parallel.zero=1 or parallel.pp=1"),
    Refusal("torchtitan", {"pp": 3, "vp": 2, "schedule": "interleaved"}, "add parallel.vp=1"),
    Refusal("torchtitan-toml", {"pp": 2, "stage_replicas": (1, 2)}, "leave out parallel.stage_replicas"),
    Refusal("megatron", {"pp": 2, "vp": 2, "schedule": "zbv"}, "has no zbv; add parallel.schedule=interleaved"),
    Refusal("torchtitan", {"pp": 2, "schedule": "zb1p"}, "has no zb1p with parallel.vp=1; .*one of 1f1b, gpipe"),
    Refusal("torchtitan", {"pp": 2, "vp": 2, "schedule": "zbv", "zero": 3}, "add parallel.zero=1"),
    Refusal("torchtitan", {"pp": 2, "recompute": "stage"}, "add parallel.recompute=full"),
    Refusal("horovod", {}, f"unknown; use {', '.join(EXPORTS)}"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.message)
def test_what_a_target_cannot_say_is_refused_in_one_line(llama: RunConfig, refusal: Refusal) -> None:
    with pytest.raises(ValueError, match=refusal.message) as raised:
        export(refusal.target, laid_out(llama, **refusal.parallel))
    assert "\n" not in str(raised.value)


def test_the_best_that_a_target_can_say_is_written(llama: RunConfig) -> None:
    piped, plain = (replace(llama, parallel=replace(llama.parallel, pp=pp, dp=4 // pp)) for pp in (2, 1))
    text, expressed = best_export("deepspeed", [piped, plain])
    assert (text, expressed) == (export("deepspeed", plain), plain)
    with pytest.raises(ValueError, match=r"cannot say parallel\.pp=2"):
        best_export("deepspeed", [piped, piped])
