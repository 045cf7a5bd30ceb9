"""One rank's share of a training step on one layout.

`compute` runs the schedule and reduces gradients, `apply` is the optimizer step that follows once the step is
committed. `apply` needs no communication; ZeRO's gather of parameters comes after it, in `materialize`, which can be
repeated from the state at any time. A committed step can therefore never be lost to a failure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from trainsys.comm.communicator import Communicator
from trainsys.comm.group import Group
from trainsys.config import RunConfig
from trainsys.models.decoder import Decoder
from trainsys.models.geometry import logical_name
from trainsys.parallel.bucket import Bucket, BucketSpec, bucket_specs
from trainsys.parallel.executor import Executor
from trainsys.parallel.expert import ExpertParallel, ep_ranks
from trainsys.parallel.kept import Copier
from trainsys.parallel.optimizer import Update, foreseen
from trainsys.parallel.order import Order
from trainsys.parallel.reduced import Reduced
from trainsys.parallel.sequence.build import context_parallel
from trainsys.parallel.sequence.context import cp_ranks
from trainsys.parallel.sleeping import Emulation
from trainsys.parallel.snapshots.copies import Pending
from trainsys.parallel.snapshots.keeper import Keeper
from trainsys.parallel.split import Deferred
from trainsys.parallel.stage import Batch, StageRunner, build_stage
from trainsys.parallel.state import FlatState, master_dtype
from trainsys.parallel.step import Decision, Report
from trainsys.parallel.stream import Stream, StreamedBucket
from trainsys.parallel.tensor import TensorParallel
from trainsys.parallel.vocabulary_build import build_lane, build_parts
from trainsys.parallel.weights import Weights, hollow
from trainsys.planner import step_schedule
from trainsys.planner.stages import Stages
from trainsys.schedule.actions import Kind
from trainsys.schedule.lockstep import check_lockstep, together
from trainsys.schedule.routes import Routes
from trainsys.space.layout import Layout
from trainsys.space.runs import is_folded
from trainsys.space.tensor import Space, class_experts

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def routes_of(config: RunConfig, layout: Layout) -> Routes:
    """Who runs which microbatch of a step."""
    return step_schedule.routes_of(config, stages_of(config, layout))


def stages_of(config: RunConfig, layout: Layout) -> Stages:
    """The grid of a layout, as the planner sees it."""
    last = config.model.num_layers
    runs = tuple(min(stop, last) - max(first, 0) for _, (first, stop) in layout.runs)
    vocabulary = tuple(stage.vocabulary for stage in layout.stages if stage.vocabulary)
    return Stages(runs, layout.replicas, layout.tp, layout.ep, layout.cp, is_folded(config.parallel), vocabulary)


def wanted_groups(space: Space, layout: Layout, routes: Routes) -> list[tuple[int, ...]]:
    """Every process group of a layout, in an order that all ranks agree on: mesh, teams, cp and ep groups, buckets."""
    groups = [layout.ranks, *(team for stage in layout.stages for team in stage.teams)]
    if layout.cp > 1:
        groups += [cp_ranks(layout, rank) for rank in layout.ranks]
    if layout.ep > 1:
        groups += [ep_ranks(layout, rank) for rank in layout.ranks]
    for rank in layout.ranks:
        groups += [s.ranks for s in bucket_specs(space, layout, rank, routes.microbatches, routes.num_microbatches)]
    return [g for g in dict.fromkeys(groups) if len(g) > 1]


class Engine:
    """Modules, gradients and optimizer of one rank.

    Args:
        config: of the run; of `config.parallel` schedule, recompute, offload, reduction and sequence_parallel apply.
        layout: where everything lives from now on.
        comm: already holds `wanted_groups`.
        state: this rank's masters and moments in the layout's storage order.
        at: called with the name of each phase as it is entered.
        emulation: what stages sleep for instead of computing; None: they compute.
    """

    def __init__(
        self,
        config: RunConfig,
        space: Space,
        layout: Layout,
        rank: int,
        comm: Communicator,
        state: FlatState,
        device: torch.device,
        at: Callable[[str], None] = lambda phase: None,
        emulation: Emulation | None = None,
    ) -> None:
        self.emulation = emulation
        self.config, self.space, self.layout, self.rank, self.state, self.at = config, space, layout, rank, state, at
        self.device, self.dtype = device, DTYPES[config.train.dtype]
        self.copier, self._stamps = Copier(device), comm.stamps
        self.pending: deque[Pending] = deque()  # steps computed and not yet applied
        self._computing = False  # a step; after one that is void it does not matter
        self.stage, team, self.shard = layout.where(rank)
        self.replica, self.cp_index = layout.replica_of(rank)
        self.routes = routes_of(config, layout)
        stages = stages_of(config, layout)
        self.schedule = emulation.schedule if emulation else step_schedule.schedule_of(config, stages)
        self.order = Order(layout, self.schedule)
        self.mesh = comm.group(layout.ranks) if len(layout.ranks) > 1 else None
        members = layout.stages[self.stage].teams[team]
        self.tp = TensorParallel(comm.group(members), config.parallel.sequence_parallel) if layout.tp > 1 else None
        self.cp = None
        if layout.cp > 1:
            self.cp = context_parallel(config, layout, rank, comm, device)
        self.ep = self._expert_parallel(comm)
        self._build_buckets(comm)
        self._build_stages()

    def _expert_parallel(self, comm: Communicator) -> ExpertParallel | None:
        if self.layout.ep == 1 or not self.config.model.num_experts:
            return None
        lanes, cp = self.schedule.placement, self.layout.cp
        groups = {(s, stage.ep_group(i)) for s, stage in enumerate(self.layout.stages) for i in range(len(stage.teams))}
        check_lockstep(self.schedule, together([lanes[s, team // cp] for team in teams] for s, teams in sorted(groups)))
        members = ep_ranks(self.layout, self.rank)
        ep, count = self.layout.ep, self.config.model.num_experts
        classes = [class_experts(count, ep, c).start for c in range(ep + 1)]
        return ExpertParallel(comm.group(members), members, classes)

    def _build_buckets(self, comm: Communicator) -> None:
        def make(spec: BucketSpec) -> Bucket:
            group: Group | None = comm.group(spec.ranks) if len(spec.ranks) > 1 else None
            dtype = master_dtype(self.dtype)
            if self.layout.zero >= 2 and group is not None:
                return StreamedBucket(spec, self.rank, group, dtype, self.device, self.stream)
            return Bucket(spec, self.rank, group, dtype, self.device, self.config.parallel.reduction == "fast")

        self.stream = Stream(self.rank, self.order)
        count = self.routes.num_microbatches
        specs = bucket_specs(self.space, self.layout, self.rank, self.routes.microbatches, count)
        self.buckets = [make(spec) for spec in specs]
        self.reduced = Reduced(self.space, self.layout, self.rank, self.buckets, self.tp)
        self.keeper = Keeper(self.config, self.space, self.layout, self.rank, self.mesh, self.state)

    def _build_stages(self) -> None:
        """The stages of the schedule that run here: several under vp."""
        hosted = [number for number, (stage, _) in enumerate(self.layout.runs) if stage == self.stage]
        split = any(action.kind is Kind.I for lane in self.schedule.lanes for action in lane)
        deferred = {stage: Deferred() if split else None for stage in hosted}
        models = {stage: self._model(stage, deferred[stage]) for stage in hosted}
        self.params: dict[str, Tensor] = {n: p for model in models.values() for n, p in model.named_parameters()}
        self.vocabulary = build_parts(
            self.config, self.space, self.layout, self.rank, self.dtype, self.device, self.tp, self.cp, self._push_own
        )
        self.params |= {} if self.vocabulary is None else self.vocabulary.params
        self.ordinal_of = {n: self.space.ordinal[logical_name(self.config.model, n)] for n in self.params}
        block_of = {n: self.space.tensors[o].blocks[self._second_use(n)] for n, o in self.ordinal_of.items()}
        parts = {part: [n for n, b in block_of.items() if b in part] for s in hosted for part in self.order.parts(s)}
        self.weights = None
        if self.layout.zero == 3:
            used = {
                part: {self.ordinal_of[n]: cast(nn.Parameter, self.params[n]) for n in names}
                for part, names in parts.items()
            }
            self.weights = Weights(self.rank, self.dtype, self.device, self.buckets, used, self.order.uses)
        self.runners = {
            stage: self._runner(stage, model, {part: parts[part] for part in self.order.parts(stage)}, deferred[stage])
            for stage, model in models.items()
        }
        ordinals = [bucket.spec.tensors for bucket in self.buckets]
        self.names_of = [[n for n, o in self.ordinal_of.items() if o in own] for own in ordinals]
        stages, runs, cp = self.layout.stages, self.layout.runs, self.layout.cp
        rank_of = {lane: stages[runs[s][0]].teams[r * cp + self.cp_index][self.shard]
                   for (s, r), lane in self.schedule.placement.items()}  # fmt: skip
        lane = self.schedule.placement[next(iter(self.runners)), self.replica]
        passes = None
        if self.vocabulary is not None:
            boundary = next(iter(self.runners.values())).boundary
            passes = build_lane(
                self.vocabulary, self.config.model, self.layout, self.schedule, lane, boundary, self.mesh, rank_of
            )
        links = self.emulation.links(self.mesh, lane, rank_of) if self.emulation and self.mesh else self.mesh
        self.executor = Executor(self.schedule, lane, self.runners, links, rank_of, self.at, passes, self._stamps)

    def _model(self, stage: int, deferred: Deferred | None) -> Decoder:
        return build_stage(
            self.config.model, range(*self.layout.runs[stage][1]), self.space.tensors, self.dtype, self.device,
            self.tp, self.cp, self.config.parallel.recompute, self.routes.num_microbatches, self.ep,
            deferred, hollow if self.layout.zero == 3 else torch.empty,
        )  # fmt: skip

    def _runner(
        self, stage: int, model: Decoder, parts: Mapping[range, Sequence[str]], deferred: Deferred | None
    ) -> StageRunner:
        batch, shards = self.config.batch, self.tp.size if self.tp and self.tp.sequence_parallel else 1
        lane = self.schedule.lanes[self.schedule.placement[stage, self.replica]]
        again = {action.microbatch for action in lane if action.kind is Kind.R and action.stage == stage}

        def shape(microbatch: int) -> tuple[int, int, int]:
            seq = batch.length(microbatch) if self.cp is None else len(self.cp.rows.which)
            return batch.microbatch_size, seq // shards, self.config.model.dim

        runner = self.emulation.runner(stage) if self.emulation else StageRunner
        return runner(
            model, shape, batch.length, self.config.train.seed, batch.tokens, self.tp, self.cp, self._collect, parts,
            self.weights.whole if self.weights else lambda part: nullcontext(),
            self.config.parallel.offload == "activations", deferred, again,
            self.copier if self.config.parallel.offload == "scheduled" else None,
        )  # fmt: skip

    def microbatches(self) -> tuple[int, ...]:
        """The global microbatches that this rank computes."""
        return self.routes.microbatches(self.stage, self.replica)

    # -- before the commit ---------------------------------------------------------------------------------------

    def compute(self, batch: Batch) -> Report:
        """Forward, backward, reduction and the peer snapshot of one step; changes no training state.

        With `optim.post_validation` the snapshot may still be under way: see `when_kept`.

        Raises:
            CommError: the step is void and can be computed again, here or on another layout.
        """
        before = self.pending[-1] if self.pending else None
        self._computing = True
        self.state.change_beside()
        for bucket in self.buckets:
            bucket.begin()
        self.stream.begin()
        passes = () if self.vocabulary is None else (self.vocabulary,)
        for runner in (*self.runners.values(), *passes):
            runner.begin(batch)
        if self.ep is not None:
            self.ep.begin()
        if self.weights:
            self.weights.begin()
        self.executor.run()
        self.at("reduce")
        flats = [bucket.reduce() for bucket in self.buckets]
        if self.weights:
            self.weights.finish()
        self.reduced.sum_partials_over_tp(flats)
        if self.layout.zero == 0 and self.config.parallel.reduction != "fast":
            for bucket, flat in zip(self.buckets, flats, strict=True):
                bucket.gather(flat)
        self.at("snapshot")
        grad, still = self.reduced.gathered(flats), bool(self.pending)
        squares = cache(lambda: self.reduced.squares(flats))
        self.pending.append(self.keeper.begin(grad, squares, batch.step, before, still))
        own = squares()  # messages travel meanwhile
        if not self.config.optim.post_validation:
            self.keeper.wait(self.pending[-1])
        self._computing = False
        losses = {
            mb: n for runner in (*self.runners.values(), *passes) for mb, n in runner.losses.items() if self.shard == 0
        }
        samples = {mb: batch.microbatches[mb][2] for mb in losses}
        return Report(
            batch.step, {(mb, self.cp_index): n for mb, n in losses.items()}, samples, own, self.keeper.chosen
        )

    def when_kept(self, tell: Callable[[Exception | None], None]) -> None:
        """Have `tell` called once the snapshot of the step computed last is complete on this rank and from it.

        Maybe from another thread; with what went wrong, if anything did.
        """
        self.keeper.when_kept(self.pending[-1], tell)

    def _push_own(self, microbatch: int, grads: dict[str, Tensor]) -> None:
        """After T or G: the gradients of this rank's rows of the vocabulary."""
        self._push(microbatch, self.cp_index, grads)

    def _collect(self, microbatch: int, grads: dict[str, Tensor]) -> None:
        """After a backward: this rank's gradients, then those of its experts for the other members' microbatches."""
        self.stream.leave()
        self._push(microbatch, self.cp_index, grads)
        if self.ep is not None:
            together = self.order.together(self.rank, microbatch)
            for member, theirs in self.ep.gradients(grads):
                self._push(*together[member], theirs)

    def _push(self, microbatch: int, cp_index: int, grads: dict[str, Tensor]) -> None:
        """Hand the gradients of one microbatch, or of a part of its stage or sequences, to the buckets.

        A tied head is a second use of the embedding's tensor.
        """
        for bucket, names in zip(self.buckets, self.names_of, strict=True):
            parts: dict[int, dict[int, Tensor]] = {}
            for name in names:
                if name in grads:
                    parts.setdefault(self._second_use(name), {})[self.ordinal_of[name]] = grads[name]
            for part, values in parts.items():
                bucket.push(bucket.spec.leaf(microbatch, part, cp_index), values)

    def _second_use(self, name: str) -> bool:
        """Whether a parameter is a tied head."""
        return name != self.space.tensors[self.ordinal_of[name]].name

    # -- after the commit ----------------------------------------------------------------------------------------

    def apply(self, decision: Decision) -> None:
        """The optimizer step on the state, and on mirrors beside what is computed next; purely local."""
        self.keeper.apply(self.pending.popleft(), decision)
        if self._computing:  # with `optim.post_validation`
            self.state.change_beside()

    def discard(self) -> None:
        """Forget the step computed last, once its messages are through: the next ones must not meet them."""
        self.keeper.wait(self.pending.pop())

    def foresee(self, update: Update) -> None:
        """`materialize` as if `update` had been applied: the next step can begin before this one counts."""
        last = self.pending[-1]
        if last.after is not None:
            self.materialize(last.after["master"])
        else:
            held = self.keeper.copies.held
            self.materialize(foreseen(self.config.optim, self.state.first(held), last.grad[:held], update))

    def materialize(self, masters: Tensor | None = None) -> None:
        """Write the compute-precision parameters from the masters, gathered from their owners under ZeRO-1 and 2.

        ZeRO-3 writes the owned ones alone; `compute` gathers each block when it is needed.

        Args:
            masters: others than the held ones, laid out like them.
        """
        masters = self.state.first(self.keeper.copies.held)["master"] if masters is None else masters
        if self.weights:
            self.weights.load(self.state, masters)
            return
        if self.layout.zero == 0:
            self._copy_params(masters)
            return
        for bucket in self.buckets:
            flat = torch.empty(bucket.spec.numel, dtype=self.dtype, device=self.device)
            at = 0
            for piece in bucket.spec.pieces:
                if bucket.region.start <= at < bucket.region.stop:
                    start = self.state.offsets[piece]
                    flat[at : at + piece.numel].copy_(masters[start : start + piece.numel])
                at += piece.numel
            bucket.gather(flat)
            self._write_params(bucket, flat)

    @torch.no_grad()
    def _copy_params(self, masters: Tensor) -> None:
        """Under ZeRO-0 every master is here, and the pieces of a tensor lie end to end."""
        own = ((p, at) for p, at in self.state.offsets.items() if p.shard == self.shard)  # a mirrored one may differ
        first = {p.tensor: at for p, at in own if p.start == 0}
        for name, p in self.params.items():
            at = first[self.ordinal_of[name]]
            p.view(-1).copy_(masters[at : at + p.numel()])

    @torch.no_grad()
    def _write_params(self, bucket: Bucket, flat: Tensor) -> None:
        targets: dict[int, list[Tensor]] = {}
        for name, p in self.params.items():
            targets.setdefault(self.ordinal_of[name], []).append(p.view(-1))
        at = 0
        for piece in bucket.spec.pieces:
            for target in targets[piece.tensor]:
                target[piece.start : piece.stop].copy_(flat[at : at + piece.numel])
            at += piece.numel
