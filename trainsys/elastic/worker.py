"""A training rank: obeys the manager's epochs, computes steps in between, survives its peers.

run()    waits for Open, then enter() and train(), until a fault or the end
enter()  connect, transition, census, commit of the epoch, build the engine
train()  compute → propose → verdict → apply, step after step
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import NoReturn

import torch
from torch._C._distributed_c10d import Store

from trainsys.comm.communicator import Communicator
from trainsys.comm.group import CommError, Group
from trainsys.config import RunConfig
from trainsys.data.build import build_source
from trainsys.data.sampler import Sampler
from trainsys.elastic.ahead import Ahead
from trainsys.elastic.beside import Beside
from trainsys.elastic.census import take_census
from trainsys.elastic.checkpoint import load_state
from trainsys.elastic.clocks.registry import clock_of, open_clock
from trainsys.elastic.control import Abandoned, ControlClient
from trainsys.elastic.faults import FaultEvent, Injector
from trainsys.elastic.fingerprints import code_print, config_print
from trainsys.elastic.holding import Holding
from trainsys.elastic.kinds import weights_to_start_from
from trainsys.elastic.messages import (
    Beat,
    CommitEpoch,
    Failed,
    Fault,
    Hello,
    Open,
    Prepare,
    Prepared,
    Proposal,
    Quiesced,
    Quit,
    Staged,
    Verdict,
)
from trainsys.elastic.own_device import device_of, peak_bytes
from trainsys.elastic.progressive import Passage, PortionError
from trainsys.elastic.rank_history import RankHistory
from trainsys.elastic.saver import Saver
from trainsys.elastic.staging import Staging
from trainsys.elastic.transit import run_transition
from trainsys.elastic.troubles import Troubles
from trainsys.models.geometry import resolve, tensors
from trainsys.models.stand_in import stand_in
from trainsys.parallel.engine import DTYPES, Engine, routes_of, wanted_groups
from trainsys.parallel.pages import want_huge_pages
from trainsys.parallel.sleeping import Emulation
from trainsys.parallel.stage import Batch
from trainsys.parallel.state import FlatState, filled_state, initial_state, master_dtype
from trainsys.space.layout import Layout
from trainsys.space.portions import Portions
from trainsys.space.tensor import Space

Hashed = dict[tuple[int, str], int]  # (tensor, slot) -> hash


class Worker:
    """One rank of the elastic cluster.

    Args:
        store: c10d store outside the training ranks, for connecting process groups.
        faults: schedule of injected faults; empty in real life.
    """

    def __init__(
        self, config: RunConfig, rank: int, node: int,
        control: Callable[[Hello, Callable[[int], None]], ControlClient], store: Store,
        faults: tuple[FaultEvent, ...] = (),
    ) -> None:  # fmt: skip
        self.config, self.rank, self.node = config, rank, node
        self.model = stand_in(config.model) if config.train.emulate else resolve(config.model)
        self.space = Space(tensors(self.model))
        self.device = device_of(config, rank)
        self.clock = open_clock(config.elastic.clocks, self.device.index or 0)
        self.dtype = master_dtype(DTYPES[config.train.dtype])
        self.comm = Communicator(store, rank, config.cluster.device.backend, config.elastic.comm_timeout_s)
        self.troubles = Troubles(config.train.emulate_slow, rank)
        self.comm.lag_s = self.troubles.lag_s
        self.history = RankHistory(config, self.space, rank, node)
        self.injector = Injector(
            faults, rank, Path(config.run_dir) / "faults", self.history.struck, self,
            config.cluster.nodes * config.cluster.ranks_per_node, self.history.waited,
        )  # fmt: skip
        self.sampler: Sampler | None = None
        if not config.train.emulate:
            source = build_source(config.data, config.model.vocab_size)
            self.sampler = Sampler(source, config.batch.seq_len, config.train.seed)
        self.state: FlatState | None = None
        self.layout: Layout | None = None
        self.engine: Engine | None = None
        self.step = 0  # optimizer steps in `state`
        self.holdings: dict[int, Holding] = {}  # by epoch, while the layout changes progressively
        self.released = (-1, 0)  # epoch entered that way, portions released in it
        self.beside: Beside | None = None  # the next layout, while it is prepared
        self.saver = Saver(
            config, self.space, rank, self.comm, self.injector.saving, lambda saved: self.control.send(saved)
        )
        hello = Hello(rank, os.getpid(), node, (code_print(), config_print(config)))
        self.injector.arrived()
        self.control = control(hello, self._on_fault)
        self._beat_s = self.control.pause_s()
        self.control.pause_s, self.control.beat = self._pause_s, self._beat
        self.ahead = Ahead(config, self.control, self._apply)

    def _on_fault(self, epoch: int) -> None:
        self.comm.abort(epoch - 1)
        self.saver.abort(epoch - 1)
        beside = self.beside  # the main thread may be done with it meanwhile
        if beside is not None:
            beside.drop()

    def _beat(self) -> Beat:
        return Beat(self.control.epoch, self.comm.stamps.doing())

    def _pause_s(self) -> float:
        """Until the next heartbeat: what hangs is told as soon as it has lasted ``elastic.hang_limit_s``."""
        limit_s = self.config.elastic.hang_limit_s
        left_s = limit_s - self.comm.stamps.doing().for_s
        return min(self._beat_s, limit_s, left_s + 1e-3 if left_s > 0 else limit_s) if limit_s else self._beat_s

    def run(self) -> NoReturn:
        """Serve until the manager says Quit, which raises SystemExit."""
        while True:
            message = self.control.receive()
            try:
                if isinstance(message, Quit):
                    raise SystemExit(1 if message.reason else 0)
                if isinstance(message, Fault):
                    if message.epoch > self.control.epoch:
                        raise Abandoned(message.epoch)
                    continue
                if isinstance(message, Verdict):
                    if self.engine is None:
                        self._watch(message)
                    else:  # on the last step, while communication in the next one failed
                        self.ahead.take(message)
                    continue
                assert isinstance(message, Open), message
                self.enter(message)
                if self.engine is not None:
                    self.train()
            except Abandoned as call:
                self.saver.abort(call.epoch - 1)  # a rank that is about to leave writes no more
                self.history.abandoned(call.epoch, self.comm)
                self.control.send(Quiesced(call.epoch, self.comm.clean(), self.released))
            except CommError as error:
                self.history.failed(str(error))
                self.control.send(Failed(self.control.epoch, str(error), isinstance(error, PortionError)))

    # -- entering an epoch ---------------------------------------------------------------------------------------

    def enter(self, order: Open) -> None:
        """Build the destination, and switch when the manager commits."""
        started = time.monotonic()
        self.comm.stamps.enter("plan")
        at, self.injector.step, self.control.epoch = self._at, order.step, order.epoch
        self.ahead.enter()
        self.saver.leave()
        self.engine = None  # its parameters and gradients are never needed again: room for the state to come
        at("plan")
        config = self._config(order)
        routes = routes_of(config, order.dst)
        at("connect")
        everyone = tuple(sorted(order.participants))
        wanted = [everyone] if len(everyone) > 1 else []
        if order.prepared:
            new, received, before = *self._adopt(order), None
            self.history.entered(order, self.comm)
        else:
            self._drop()
            self.comm.reconfigure(order.epoch, wanted + wanted_groups(self.space, order.dst, routes), order.keep)
            self.history.entered(order, self.comm)
            new, received, before = self._stage(order, self.comm.group(everyone) if wanted else None)
        at("verify")
        census = take_census(
            self.space, self.rank, order.src, order.alive, self.state, order.dst, new, self.step, before
        )
        self.history.staged(census, order.dst, new)
        self.control.send(Staged(order.epoch, census, received, time.monotonic() - started))
        commit = self.control.expect(CommitEpoch)
        self.state, self.layout, self.step, self.holdings = new, order.dst, order.step, {}
        self.history.switched(order.dst, order.step)
        for flat in new.slots.values():
            want_huge_pages(flat)  # what was to be released in small ones stays now
        at("commit")
        if self.rank in order.dst.ranks:
            planned = dataclasses.replace(config, model=resolve(self.config.model))  # the stand-in has other sizes
            if self.config.elastic.clocks != "none":
                self.clock.set(clock_of(planned, order.dst, self.rank, self.clock.cap))
            emulation = Emulation.of(planned, self._slow) if config.train.emulate else None
            engine = Engine(config, self.space, order.dst, self.rank, self.comm, new, self.device, self._at, emulation)
            self.injector.microbatches = len(engine.microbatches())
            engine.materialize()
            self.engine = engine
            self._close_step(commit.checkpoint, commit.stop)

    def _slow(self) -> float:
        """How many times as long emulated stages take."""
        return self.troubles.factor * self.clock.slowdown

    def _config(self, order: Open) -> RunConfig:
        return dataclasses.replace(self.config, model=self.model, parallel=order.parallel)

    def _stage(self, order: Open, group: Group | None) -> tuple[FlatState, int, Hashed | None]:
        """The state under the destination, the bytes received for it, and the source's hashes if taken on the way."""
        if order.held:
            return self._pass(order, group)
        self.injector.at("transfer")
        if order.src is None:
            return self._first(order), 0, None
        new, received = run_transition(
            self.space, order.src, order.dst, self.rank, order.alive, order.nodes, self.state, group, self.dtype,
            self.device, self._staging(),
        )  # fmt: skip
        return new, received, None

    def _pass(self, order: Open, group: Group | None) -> tuple[FlatState, int, Hashed]:
        """Portion by portion, each released where it was. What was released before a failure counts."""
        (first, *more) = order.held
        if not more:  # the whole state stands under one layout, and may be cut anew
            known = self.holdings.get(first.epoch)
            whole = known.state if known is not None else self.state
            self.holdings = {}
            if self.rank in first.layout:
                assert whole is not None
                self.holdings[first.epoch] = Holding(whole, True)
        tps = {order.dst.tp, *(h.layout.tp for h in order.held)}  # one within a run, or what is held would be cut anew
        portions = Portions(self.space, order.portions, tps, order.dst.chunk)
        stale = self.rank in order.alive and self.step != order.step
        passage = Passage(
            self.space, order.held, order.dst, self.rank, order.alive, order.nodes, self.holdings, order.epoch,
            portions, group, self.dtype, self.device, self._staging(), stale,
        )  # fmt: skip
        self.injector.portions = order.portions
        try:
            new = passage.run(self.injector.at)
        finally:
            self.released = order.epoch, passage.released
            if passage.released:
                self.step = order.step
        return new, passage.received, passage.before

    # -- preparing an epoch beside the steps ---------------------------------------------------------------------

    def _prepare(self, order: Prepare) -> None:
        """Begin to make the next layout in another thread."""
        config = dataclasses.replace(self.config, model=self.model, parallel=order.parallel)
        everyone = tuple(sorted(order.participants))
        groups = [everyone] if len(everyone) > 1 else []
        groups += wanted_groups(self.space, order.dst, routes_of(config, order.dst))

        def tell(error: str) -> None:
            self.control.send(Prepared(order.epoch, error))

        self.beside = Beside(
            order, self.space, self.rank, self.comm.spawn("b"), groups, self.state, self.config.optim, self.dtype,
            self.device, self._staging, tell,
        )  # fmt: skip

    def _watch(self, verdict: Verdict) -> None:
        """A step of the others, while this rank prepares to join them."""
        if self.beside is not None:
            self.beside.follow(verdict.decision, None)
        if verdict.prepare is not None:
            self._prepare(verdict.prepare)
        if verdict.change >= 0:
            raise Abandoned(verdict.change)

    def _adopt(self, order: Open) -> tuple[FlatState, int]:
        """What has been prepared, and the bytes received for it. Raises CommError."""
        beside = self.beside
        if beside is None or beside.order.epoch != order.epoch:
            raise CommError(f"nothing is prepared for epoch {order.epoch}")
        try:
            self._at("transfer")
            new = beside.finish(order.step)
            self.comm.adopt(order.epoch, beside.comm)
        finally:
            self._drop()
        return new, beside.received

    def _drop(self) -> None:
        """Nothing is prepared any more."""
        if self.beside is not None:
            self.beside.drop()
            self.beside = None

    def _staging(self) -> Staging:
        return Staging(int(self.config.elastic.staging_mib * 2**20))

    def _first(self, order: Open) -> FlatState:
        """The state that training starts with."""
        if self.rank not in order.dst.ranks:
            return FlatState((), self.dtype, self.device)
        if order.resume:
            return load_state(Path(order.resume), self.space, order.dst, self.rank, self.dtype, self.device)
        if self.config.train.init_from:
            read = partial(weights_to_start_from(self.config).read, "master")
            return filled_state(self.space, order.dst, self.rank, read, self.dtype, self.device)
        seed = self.config.train.seed
        return initial_state(self.space, order.dst, self.rank, self.model, seed, self.dtype, self.device)

    # -- steps ---------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Steps until a fault (`Abandoned`, `CommError`) or the end (`SystemExit`)."""
        engine = self.engine
        assert engine is not None and self.state is not None
        while True:
            step = self.step + self.ahead.open
            self.injector.step = step
            self.comm.stamps.enter("data")
            self.troubles.enter(step)
            batch = self._batch(engine, step)
            report, times = engine.compute(batch), self.comm.stamps.take_step()
            if self.ahead.open and not self._follow(engine):
                engine.discard()
                continue
            traced = step >= self.config.train.steps - self.config.train.trace_steps
            events = tuple(engine.executor.events) if traced else ()
            self.history.computed(batch, report)
            proposal = Proposal(self.control.epoch, report, events, peak_bytes(self.device), times)
            engine.when_kept(partial(self._kept, proposal))
            if not self.ahead.propose(step, engine):
                self._follow(engine)

    def _kept(self, proposal: Proposal, error: Exception | None) -> None:
        """The step can be proposed: all that the peers need of it is there, and theirs is here."""
        if error is None:
            self.control.send(proposal)
        elif isinstance(error, CommError):
            self.control.send(Failed(proposal.epoch, str(error)))
        else:
            self.control.fail(error)

    def _follow(self, engine: Engine) -> bool:
        """Do what the verdict on the last proposal says; whether the weights were already those that it leaves."""
        self.comm.stamps.enter("verdict")
        verdict, right = self.ahead.close()
        self._close_step(verdict.checkpoint, verdict.stop)
        if verdict.change >= 0:
            raise Abandoned(verdict.change)
        if not right:
            self.comm.stamps.enter("materialize")
            engine.materialize()
        return right

    def _apply(self, verdict: Verdict) -> None:
        """The optimizer step of what counts now."""
        assert self.engine is not None and self.layout is not None and self.state is not None
        beside = self.beside
        if beside is not None:
            beside.copied()
            grad = None if verdict.decision.skipped else self.engine.pending[0].grad.clone()
            beside.follow(verdict.decision, grad)
        self.comm.stamps.enter("optimizer")
        now, self.injector.step = self.injector.step, self.step
        self.injector.at("optimizer")
        self.injector.step = now
        self.engine.apply(verdict.decision)
        self.step += 1
        if verdict.prepare is not None:
            self._prepare(verdict.prepare)
        self.history.applied(verdict.decision, self.step)
        self.history.hashed(self.layout, self.state, self.step, verdict.stop)

    def _at(self, phase: str) -> None:
        """In every phase of a step, and of a change."""
        self.comm.stamps.enter(phase)
        self.injector.at(phase)
        if self.troubles.factor == inf:
            self.history.hangs(self.step)
            time.sleep(1e6)  # whatever peers and manager do
        self.ahead.poll()

    def _close_step(self, checkpoint: bool, stop: bool) -> None:
        """What the manager wants at a step boundary."""
        if checkpoint:
            assert self.layout is not None and self.state is not None
            self.comm.stamps.enter("save")
            self.saver.save(self.control.epoch, self.layout, self.step, self.state, at_once=stop)
        if stop:
            self._drop()
            self.control.expect(Quit)  # leaves

    def _batch(self, engine: Engine, step: int) -> Batch:
        size, first = self.config.batch.microbatch_size, step * self.config.batch.global_size
        microbatches = {}
        for mb in engine.microbatches():
            position = first + mb * size
            inputs = targets = torch.empty(0)
            if self.sampler is not None:
                inputs, targets = (torch.from_numpy(a).to(self.device) for a in self.sampler.batch(position, size))
            microbatches[mb] = (inputs, targets, tuple(range(position, position + size)))
        return Batch(step, microbatches)
