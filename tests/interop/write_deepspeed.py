"""Train a tiny model with DeepSpeed on gloo ranks and save what it saves, and beside it what its engine holds.

A process per rank: ``python write_deepspeed.py FOLDER STAGE DTYPE RANK WORLD PORT``. STEPS=0 in the environment: load
the universal checkpoint in FOLDER instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from trainsys.config import ModelConfig
from trainsys.models.geometry import resolve, tensors
from trainsys.models.init import init_box
from trainsys.models.registry import build

CONFIG = ModelConfig(vocab_size=64, dim=24, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=40, max_seq_len=16)
STEPS = int(os.environ.get("STEPS", "2"))


def main(folder: Path, stage: int, dtype: str, rank: int, world: int, port: int) -> None:
    """One rank of the run."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
    )  # fmt: skip
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
    from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled first
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    config = resolve(CONFIG)
    model = build(config, range(-1, config.num_layers + 1))
    model.load_state_dict({t.name: init_box(t, (0,) * len(t.shape), t.shape, 3, config) for t in tensors(config)})
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {
            "stage": stage, "stage3_param_persistence_threshold": 0, "sub_group_size": 4000,
            "reduce_bucket_size": 5000,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
    }  # fmt: skip
    if not STEPS:
        settings["checkpoint"] = {"load_universal": True}
    if dtype == "bfloat16":
        settings["bf16"] = {"enabled": True}
    if stage == 3:
        settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    if not STEPS:
        engine.load_checkpoint(str(folder))
    for step in range(STEPS):
        tokens = torch.arange(32).view(2, 16).add(7 * step + rank) % config.vocab_size
        logits = engine(tokens)
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.roll(-1, 1).flatten())
        engine.backward(loss)
        engine.step()
    zero = engine.optimizer
    if stage < 3:  # torch's AdamW made its moments after the engine linked them
        for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(group, flat, zero.optimizer.state)
    held = {}
    for name, parameter in engine.module.named_parameters():
        held[f"master.{name}"] = safe_get_full_fp32_param(parameter)
        for slot in ("exp_avg", "exp_avg_sq"):
            held[f"{slot}.{name}"] = safe_get_full_optimizer_state(parameter, slot)
    held["steps"] = torch.tensor(engine.global_steps)
    if STEPS:
        engine.save_checkpoint(str(folder))
    if rank == 0:
        torch.save({k: v.detach().cpu().clone() for k, v in held.items() if v is not None}, folder / "held.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    path, stage, dtype, *numbers = sys.argv[1:]
    main(Path(path), int(stage), dtype, *map(int, numbers))
