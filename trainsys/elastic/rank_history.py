"""What a rank writes down: epochs, groups, the samples of each step, the verdicts it applied, its part of the state."""

from __future__ import annotations

from typing import Any

from trainsys.comm.communicator import Communicator
from trainsys.config import RunConfig
from trainsys.elastic.census import take_census
from trainsys.elastic.faults import FaultEvent
from trainsys.elastic.history import History, fingerprint, open_files, runs, threads
from trainsys.elastic.messages import Census, Open
from trainsys.parallel.stage import Batch
from trainsys.parallel.state import FlatState
from trainsys.parallel.step import Decision, Report
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space


class RankHistory(History):
    """One rank's file. It begins with the first epoch, whose order names the attempt.

    Args:
        config: of the run; ``elastic.history`` says whether there is a file at all.
    """

    def __init__(self, config: RunConfig, space: Space, rank: int, node: int) -> None:
        super().__init__()
        self.config, self.space, self.rank, self.node = config, space, rank, node
        self.epoch = -1

    def entered(self, order: Open, comm: Communicator) -> None:
        """The groups of an epoch stand."""
        if not self.on and self.config.elastic.history and order.run:
            self.open(self.config.run_dir, f"rank-{self.rank}", order.run, rank=self.rank, node=self.node)
        self.epoch = order.epoch
        if not self.on:
            return
        names = sorted(group.name for group in comm.groups)
        built = [name for name in names if name.startswith((f"e{order.epoch}/", f"e{order.epoch}b/"))]
        self.add(
            "entered", epoch=order.epoch, step=order.step, layout=str(order.dst), fingerprint=fingerprint(order.dst),
            built=built, kept=[name for name in names if name not in built], fds=open_files(),
            sockets=sum(group.num_sockets for group in comm.groups), threads=threads(),
        )  # fmt: skip

    def staged(self, census: Census, layout: Layout, state: FlatState) -> None:
        """The state under the epoch's layout, before the manager is told of it."""
        if self.on:
            self.add("staged", epoch=self.epoch, steps=census.step, **self._evidence(census, layout, state))

    def switched(self, layout: Layout, step: int) -> None:
        """The epoch is committed: from here on the rank works, or stands by, under its layout."""
        if self.on:
            batch = self.config.batch
            self.add(
                "switched", epoch=self.epoch, step=step, works=self.rank in layout, global_size=batch.global_size,
                tokens=batch.tokens,
            )  # fmt: skip

    def computed(self, batch: Batch, report: Report) -> None:
        """A step is done, before it is proposed."""
        if self.on:
            samples = runs(p for mb in sorted(batch.microbatches) for p in batch.microbatches[mb][2])
            losses = {f"{mb},{part}": loss.hex() for (mb, part), loss in report.losses.items()}
            self.add("computed", epoch=self.epoch, step=batch.step, samples=samples, losses=losses)

    def applied(self, decision: Decision, steps: int) -> None:
        """A verdict has been carried out; `steps` optimizer steps are in the state now."""
        if self.on:
            self.add("applied", epoch=self.epoch, step=decision.step, steps=steps, **bits(decision))

    def hashed(self, layout: Layout, state: FlatState, steps: int, last: bool) -> None:
        """The state as it stands, every so many steps and after the last one."""
        every = self.config.elastic.history_every
        if self.on and (last or (every and steps % every == 0)):
            census = take_census(self.space, self.rank, None, (), None, layout, state, steps)
            self.add("hashed", epoch=self.epoch, steps=steps, **self._evidence(census, layout, state))

    def abandoned(self, epoch: int, comm: Communicator) -> None:
        """Everything is called off for `epoch`."""
        if self.on:
            refused = sum(group.refused for group in comm.groups)
            self.add("abandoned", epoch=epoch, of=self.epoch, refused=refused)

    def failed(self, reason: str) -> None:
        """Communication failed."""
        self.add("failed", epoch=self.epoch, reason=reason)

    def struck(self, event: FaultEvent, step: int) -> None:
        """An injected fault, in a moment."""
        self.add("struck", epoch=self.epoch, kind=event.kind, phase=event.phase, step=step)

    def hangs(self, step: int) -> None:
        """An emulated hang, from now on."""
        self.add("hangs", epoch=self.epoch, step=step)

    def waited(self, seconds: float, step: int) -> None:
        """A drill held the step up until a fresh rank had come."""
        self.add("waited", epoch=self.epoch, step=step, seconds=seconds)

    def _evidence(self, census: Census, layout: Layout, state: FlatState) -> dict[str, Any]:
        """A census as JSON: sums by tensor and slot, and the hash of each piece (tensor, shard, start, stop)."""
        copies, owned, others = iter(census.copies), [], []
        for p in state.pieces:
            first = self.space.tensors[p.tensor].first_copy(layout.tp, p.shard)
            mixed = census.owned.get((p.tensor, first, p.start)) if p.shard == first else None
            if mixed is None:
                others.append([p.tensor, p.shard, p.start, p.stop, f"{next(copies)[1]:016x}"])
            else:
                owned.append([p.tensor, p.shard, p.start, p.stop, f"{mixed:016x}"])
        return {"before": self._named(census.before), "after": self._named(census.after), "owned": owned,
                "copies": others}  # fmt: skip

    def _named(self, hashes: dict[tuple[int, str], int]) -> dict[str, str]:
        return {f"{self.space.tensors[t].name}.{slot}": f"{value:016x}" for (t, slot), value in hashes.items()}


def bits(decision: Decision) -> dict[str, Any]:
    """A verdict's numbers, to the bit."""
    return {
        "loss_hex": decision.loss.hex(), "grad_norm_hex": decision.grad_norm.hex(), "lr_hex": decision.lr.hex(),
        "grad_scale_hex": decision.grad_scale.hex(), "skipped": decision.skipped,
    }  # fmt: skip
