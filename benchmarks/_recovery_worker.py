"""The tiny job as other systems train it: one process of it. Started as a script by `benchmarks/recovery.py`.

All train the same model on the same number of sequences per step, and write a line per step that counts for them:
step, time (CLOCK_MONOTONIC), first sample, samples.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainsys.config import load
from trainsys.models.geometry import resolve
from trainsys.models.registry import build

RAY_EVERY = 10  # steps between checkpoints
RUN = Path(__file__).parents[1] / "configs" / "run" / "tiny.yaml"


class Job:
    """Model, optimizer, and the sequences of one worker of `workers`."""

    def __init__(self, workers: int, folder: Path) -> None:
        config = load([str(RUN)])
        torch.manual_seed(config.train.seed)
        self.config, self.workers, self.folder = config, workers, folder
        model = resolve(config.model)
        self.model = build(model, range(-1, model.num_layers + 1))
        for param in self.model.parameters():
            torch.nn.init.normal_(param, std=0.02)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.seed, self.vocab_size = config.train.seed, model.vocab_size
        self.per_worker = config.batch.global_size // workers

    def gradient(self, step: int, worker: int) -> Tensor:
        """The flat gradient of this worker's sequences, the mean over them."""
        first, size = self.first(step, worker), self.config.batch.microbatch_size
        self.model.zero_grad()
        for at in range(first, first + self.per_worker, size):
            self.model.keys.begin(self.seed, step, range(at, at + size))
            tokens = torch.randint(
                self.vocab_size, (size, self.config.batch.seq_len + 1), generator=torch.Generator().manual_seed(at)
            )
            logits = self.model(tokens[:, :-1])
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), tokens[:, 1:].reshape(-1))
            (loss * size / self.per_worker).backward()
        return torch.cat([p.grad.reshape(-1) for p in self.model.parameters() if p.grad is not None])

    def apply(self, flat: Tensor) -> None:
        """An optimizer step."""
        parts = flat.split([p.numel() for p in self.model.parameters()])
        for param, part in zip(self.model.parameters(), parts, strict=True):
            param.grad = part.view_as(param)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
        self.optimizer.step()

    def first(self, step: int, worker: int) -> int:
        return (step * self.workers + worker) * self.per_worker

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def log(self, worker: int) -> Callable[[int], None]:
        """Says that a step counts."""
        stream = (self.folder / f"worker-{worker}-{os.getpid()}.log").open("a", buffering=1)
        return lambda step: print(
            step, time.monotonic(), self.first(step, worker), self.per_worker, worker, os.getpid(), file=stream
        )  # fmt: skip


def plain(job: Job, worker: int, steps: int) -> None:
    """No fault tolerance: the floor."""
    dist.init_process_group("gloo", init_method=f"file://{job.folder}/store", rank=worker, world_size=job.workers)
    log = job.log(worker)
    for step in range(steps):
        flat = job.gradient(step, worker)
        dist.all_reduce(flat)
        job.apply(flat / job.workers)
        log(step)


def torchft(job: Job, worker: int, steps: int) -> None:
    """A replica of torchft's; the lighthouse's address is in TORCHFT_LIGHTHOUSE."""
    from torch.distributed import TCPStore
    from torchft import Manager, ProcessGroupGloo

    limit = timedelta(seconds=float(os.environ["RECOVERY_TIMEOUT_S"]))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=limit), load_state_dict=job.restore, state_dict=job.state, min_replica_size=1,
        timeout=limit, quorum_timeout=timedelta(seconds=60), rank=0, world_size=1, store_addr="127.0.0.1",
        store_port=store.port, replica_id=f"replica-{worker}", hostname="127.0.0.1",
    )  # fmt: skip
    log = job.log(worker)
    while manager.current_step() < steps:
        manager.start_quorum()
        step = manager.current_step()
        flat = job.gradient(step, worker)
        manager.allreduce(flat).wait()
        if manager.should_commit():
            job.apply(flat)
            log(step)
    os._exit(0)


def torchrun(job: Job, worker: int, steps: int) -> None:
    """Started by torchrun, which starts all again when one dies; a checkpoint in RAM after each step."""
    worker = int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    saved = job.folder / "checkpoint.pt"
    first = 0
    if saved.exists():
        found = torch.load(saved)
        job.restore(found)
        first = found["step"] + 1
    log = job.log(worker)
    for step in range(first, steps):
        flat = job.gradient(step, worker)
        dist.all_reduce(flat)
        job.apply(flat / job.workers)
        if worker == 0:
            torch.save({**job.state(), "step": step}, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
        log(step)
    dist.destroy_process_group()


def ray_loop(about: dict[str, Any]) -> None:
    """A worker of Ray Train's."""
    import tempfile

    from ray import train

    torch.set_num_threads(1)
    context = train.get_context()
    job, worker = Job(context.get_world_size(), Path(about["folder"])), context.get_world_rank()
    first, found = 0, train.get_checkpoint()
    if found is not None:
        with found.as_directory() as where:
            state = torch.load(Path(where) / "state.pt")
        job.restore(state)
        first = state["step"] + 1
    log = job.log(worker)
    for step in range(first, about["steps"]):
        flat = job.gradient(step, worker)
        dist.all_reduce(flat)
        job.apply(flat / job.workers)
        if step % RAY_EVERY == RAY_EVERY - 1:
            with tempfile.TemporaryDirectory(dir="/dev/shm") as where:
                checkpoint = None
                if worker == 0:
                    torch.save({**job.state(), "step": step}, Path(where) / "state.pt")
                    checkpoint = train.Checkpoint.from_directory(where)
                train.report({"step": step}, checkpoint=checkpoint)
        log(step)


def ray(job: Job, worker: int, steps: int) -> None:
    """The driver of Ray Train."""
    import ray as cluster
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster.init(num_cpus=job.workers + 1, include_dashboard=False, log_to_driver=False, logging_level="error")
    TorchTrainer(
        ray_loop, train_loop_config={"folder": str(job.folder), "steps": steps},
        torch_config=TorchConfig(backend="gloo"), scaling_config=ScalingConfig(num_workers=job.workers),
        run_config=RunConfig(
            storage_path=str(job.folder / "ray"), failure_config=FailureConfig(max_failures=5),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    ).fit()  # fmt: skip


SYSTEMS = {"plain": plain, "torchft": torchft, "torchrun": torchrun, "ray": ray}

if __name__ == "__main__":
    torch.set_num_threads(1)
    system, number, count, limit, where = sys.argv[1:]
    SYSTEMS[system](Job(int(count), Path(where)), int(number), int(limit))
