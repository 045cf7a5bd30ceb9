"""A training rank: obeys the manager's epochs, computes steps in between, survives its peers.

run()    waits for Open, then enter() and train(), until a fault or the end
enter()  connect, transition, census, commit of the epoch, build the engine
train()  compute → propose → verdict → apply, step after step
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import NoReturn

import torch
from torch._C._distributed_c10d import Store, TCPStore

from trainsys.comm.communicator import Communicator
from trainsys.comm.cores import share_cores
from trainsys.comm.group import CommError
from trainsys.config import RunConfig
from trainsys.data.build import build_source
from trainsys.data.sampler import Sampler
from trainsys.elastic.bonds import die_with_parent
from trainsys.elastic.census import take_census
from trainsys.elastic.checkpoint import CheckpointError, load_state, save_state
from trainsys.elastic.control import Abandoned, ControlClient
from trainsys.elastic.endpoint import Rendezvous
from trainsys.elastic.faults import FaultEvent, Injector
from trainsys.elastic.kinds import weights_to_start_from
from trainsys.elastic.messages import (
    CommitEpoch,
    Failed,
    Fault,
    Hello,
    Open,
    Proposal,
    Quiesced,
    Quit,
    Saved,
    Staged,
    Verdict,
)
from trainsys.elastic.transit import run_transition
from trainsys.models.geometry import resolve, tensors
from trainsys.models.registry import build
from trainsys.parallel.engine import DTYPES, Engine, routes_of, wanted_groups
from trainsys.parallel.stage import Batch
from trainsys.parallel.state import FlatState, filled_state, initial_state, master_dtype
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space


class Worker:
    """One rank of the elastic cluster.

    Args:
        store: c10d store outside the training ranks, for connecting process groups.
        faults: schedule of injected faults; empty in real life.
    """

    def __init__(
        self, config: RunConfig, rank: int, node: int, control: Callable[[Callable[[int], None]], ControlClient],
        store: Store, faults: tuple[FaultEvent, ...] = (),
    ) -> None:  # fmt: skip
        self.config, self.rank, self.node = config, rank, node
        self.model = resolve(config.model)
        self.space = Space(tensors(self.model))
        self.device = device_of(config, rank)
        self.dtype = master_dtype(DTYPES[config.train.dtype])
        self.comm = Communicator(store, rank, config.cluster.device.backend, config.elastic.comm_timeout_s)
        self.injector = Injector(faults, rank, Path(config.run_dir) / "faults")
        self.sampler = Sampler(
            build_source(config.data, config.model.vocab_size), config.batch.seq_len, config.train.seed
        )
        self.state: FlatState | None = None
        self.layout: Layout | None = None
        self.engine: Engine | None = None
        self.step = 0  # optimizer steps in `state`
        self.control = control(self._on_fault)

    def _on_fault(self, epoch: int) -> None:
        self.comm.abort(epoch - 1)

    def run(self) -> NoReturn:
        """Serve until the manager says Quit, which raises SystemExit."""
        self.control.send(Hello(self.rank, os.getpid(), self.node))
        while True:
            message = self.control.receive()
            try:
                if isinstance(message, Quit):
                    raise SystemExit(1 if message.reason else 0)
                if isinstance(message, Fault):
                    if message.epoch > self.control.epoch:
                        raise Abandoned(message.epoch)
                    continue
                assert isinstance(message, Open), message
                self.enter(message)
                if self.engine is not None:
                    self.train()
            except Abandoned as call:
                self.control.send(Quiesced(call.epoch, self.comm.clean()))
            except CommError as error:
                self.control.send(Failed(self.control.epoch, str(error)))

    # -- entering an epoch ---------------------------------------------------------------------------------------

    def enter(self, order: Open) -> None:
        """Build the destination beside the source, and switch when the manager commits."""
        started = time.monotonic()
        at, self.injector.step, self.control.epoch = self.injector.at, order.step, order.epoch
        self.engine = None  # its parameters and gradients are never needed again: room for the state to come
        at("plan")
        config = self._config(order)
        routes = routes_of(config, order.dst)
        at("connect")
        everyone = tuple(sorted(order.participants))
        wanted = [everyone] if len(everyone) > 1 else []
        self.comm.reconfigure(order.epoch, wanted + wanted_groups(self.space, order.dst, routes), order.keep)
        at("transfer")
        new, received = self._stage(order, everyone)
        at("verify")
        census = take_census(self.space, self.rank, order.src, order.alive, self.state, order.dst, new, self.step)
        self.control.send(Staged(order.epoch, census, received, time.monotonic() - started))
        commit = self.control.expect(CommitEpoch)
        self.state, self.layout, self.step = new, order.dst, order.step
        at("commit")
        if self.rank in order.dst.ranks:
            engine = Engine(config, self.space, order.dst, self.rank, self.comm, new, self.device, at)
            self.injector.microbatches = len(engine.microbatches())
            engine.materialize()
            self.engine = engine
            self._close_step(commit.checkpoint, commit.stop)

    def _config(self, order: Open) -> RunConfig:
        return dataclasses.replace(self.config, model=self.model, parallel=order.parallel)

    def _stage(self, order: Open, everyone: tuple[int, ...]) -> tuple[FlatState, int]:
        if order.src is not None:
            group = self.comm.group(everyone) if len(everyone) > 1 else None
            return run_transition(
                self.space, order.src, order.dst, self.rank, order.alive, order.nodes, self.state, group,
                self.dtype, self.device,
            )  # fmt: skip
        if self.rank not in order.dst.ranks:
            return FlatState((), self.dtype, self.device), 0
        if order.resume:
            return load_state(Path(order.resume), self.space, order.dst, self.rank, self.dtype, self.device), 0
        if self.config.train.init_from:
            read = partial(weights_to_start_from(self.config).read, "master")
            return filled_state(self.space, order.dst, self.rank, read, self.dtype, self.device), 0
        seed = self.config.train.seed
        return initial_state(self.space, order.dst, self.rank, self.model, seed, self.dtype, self.device), 0

    # -- steps ---------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Steps until a fault (`Abandoned`, `CommError`) or the end (`SystemExit`)."""
        engine = self.engine
        assert engine is not None and self.state is not None
        while True:
            self.injector.step = self.step
            report = engine.compute(self._batch(engine))
            traced = self.step >= self.config.train.steps - self.config.train.trace_steps
            events = tuple(engine.executor.events) if traced else ()
            self.control.send(Proposal(self.control.epoch, report, events, peak_bytes(self.device)))
            verdict = self.control.expect(Verdict)
            self.injector.at("optimizer")
            engine.apply(verdict.decision)
            self.step += 1
            self._close_step(verdict.checkpoint, verdict.stop)
            if verdict.change >= 0:
                raise Abandoned(verdict.change)
            engine.materialize()

    def _close_step(self, checkpoint: bool, stop: bool) -> None:
        """What the manager wants at a step boundary."""
        if checkpoint:
            self._save()
        if stop:
            self.control.expect(Quit)  # leaves

    def _batch(self, engine: Engine) -> Batch:
        size, first = self.config.batch.microbatch_size, self.step * self.config.batch.global_size
        microbatches = {}
        for mb in engine.microbatches():
            position = first + mb * size
            inputs, targets = (torch.from_numpy(a).to(self.device) for a in self.sampler.batch(position, size))
            microbatches[mb] = (inputs, targets, tuple(range(position, position + size)))
        return Batch(self.step, microbatches)

    def _save(self) -> None:
        """Write a checkpoint together; a full disk is reported, not fatal."""
        assert self.layout is not None and self.state is not None
        group = self.comm.group(self.layout.ranks) if len(self.layout.ranks) > 1 else None
        lead = self.rank == self.layout.ranks[0]
        try:
            path = save_state(self.config, self.space, self.layout, self.rank, self.step, self.state, group)
            if lead:
                self.control.send(Saved(self.step, str(path)))
        except CheckpointError as error:
            if lead:
                self.control.send(Saved(self.step, "", str(error)))


def device_of(config: RunConfig, rank: int) -> torch.device:
    """This rank's device: a GPU of its node under nccl, the CPU under gloo."""
    if config.cluster.device.backend == "nccl":
        return torch.device("cuda", rank % max(1, torch.cuda.device_count()))
    return torch.device("cpu")


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this rank: allocated by torch on a GPU, resident set of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def warm_up(config: RunConfig) -> None:
    """Run one microbatch through a one-layer model, so that a rank that joins does not hold up its first real step."""
    model = build(dataclasses.replace(resolve(config.model), num_layers=1), range(-1, 2))
    size = config.batch.microbatch_size
    model.keys.begin(config.train.seed, 0, range(size))
    model(torch.zeros(size, config.batch.seq_len, dtype=torch.int64)).sum().backward()


def serve(
    config: RunConfig,
    rank: int,
    node: int,
    rendezvous: Rendezvous,
    faults: tuple[FaultEvent, ...] = (),
    stop_on: tuple[signal.Signals, ...] = (),
) -> int:
    """Be one rank until the manager says Quit. Returns the exit code.

    Args:
        stop_on: signals that ask the whole job to stop at a step boundary, where the launcher signals every rank.
    """
    share_cores()
    warm_up(config)
    store = TCPStore(*rendezvous.store, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
    beat_s = config.elastic.heartbeat_limit_s / 5
    worker = Worker(
        config, rank, node, lambda on_fault: ControlClient(rendezvous.control, rendezvous.authkey, beat_s, on_fault),
        store, faults,
    )  # fmt: skip
    for number in stop_on:
        signal.signal(number, lambda signum, frame: setattr(worker.control, "stop_wanted", True))
    try:
        worker.run()
    except SystemExit as leave:
        return int(leave.code or 0)
    except (ValueError, OSError) as error:  # weights or a checkpoint that have gone meanwhile
        print(f"rank {rank}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def rank_main(
    config: RunConfig, rank: int, node: int, rendezvous: Rendezvous, faults: tuple[FaultEvent, ...] = ()
) -> None:
    """Entry point of a rank process under the local agent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the agent decides; ranks leave at a step boundary
    die_with_parent()
    threading.Thread(target=_leave_with_agent, daemon=True, name="agent").start()
    os._exit(serve(config, rank, node, rendezvous, faults))  # without destructors: they would wait for peers


def _leave_with_agent() -> None:
    """End this process when the agent's ends, even before there is a control connection."""
    agent = multiprocessing.parent_process()
    assert agent is not None
    wait([agent.sentinel])
    os._exit(1)
