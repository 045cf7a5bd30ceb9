"""The manager: epochs of membership, and the single authority that commits steps.

One loop, one state. A message can only move it along these lines:

    STARTING ──all said Hello──▶ QUIESCING ──all Quiesced──▶ CHANGING ──all Staged, census right──▶ RUNNING
                                     ▲                          │ a rank lost                          │ a rank lost,
                                     └──────────────────────────┴──────────────────────────────────────┘ or one joins

A step counts when every rank of the layout has proposed it (Verdict); a layout counts when every participant has staged
it (CommitEpoch). Nothing else is ever shared knowledge, so a fault at any instant leaves one unambiguous state. Where
the source is released as the destination arrives, `Standing` keeps the book of what stands where.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

from trainsys.config import ParallelConfig, RunConfig
from trainsys.elastic.census import check_census
from trainsys.elastic.endpoint import Endpoint
from trainsys.elastic.links import Link, Links
from trainsys.elastic.manager_history import ManagerHistory
from trainsys.elastic.messages import (
    CommitEpoch,
    Failed,
    Fault,
    Hello,
    Leaving,
    Open,
    Proposal,
    Quiesced,
    Quit,
    Saved,
    Staged,
    StopWanted,
    Verdict,
)
from trainsys.elastic.patience import Patience
from trainsys.elastic.record import Change, Observer
from trainsys.elastic.standing import Standing
from trainsys.models.geometry import resolve, split_layers, tensors
from trainsys.models.stand_in import stand_in
from trainsys.parallel.step import decide
from trainsys.planner.choose import choose
from trainsys.planner.device import rate
from trainsys.space.coverage import LostError
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space

MOST_WRONG = 3  # then it is no accident


class ElasticError(RuntimeError):
    """Training cannot go on; the message says what is missing."""


class Phase(Enum):
    STARTING = "starting"
    QUIESCING = "quiescing"
    CHANGING = "changing"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"


class Launcher(Protocol):
    """Starts and fences rank processes."""

    def spawn(self, rank: int, node: int) -> None: ...

    def kill(self, rank: int) -> None: ...

    def ended(self) -> Sequence[int]:
        """Ranks whose process has ended, those that had connected among them."""


@dataclass
class Member:
    rank: int
    node: int
    pid: int
    link: Link


class Manager:
    """Runs one training job.

    Args:
        config: of the run; `config.parallel` is the first layout.
        endpoint: where workers connect.
        launcher: of rank processes; ranks 0 … world_size-1 are already on their way.
        resume: checkpoint folder to start from, or empty.
        start_step: optimizer steps in that checkpoint.
        joins: steps at which a fresh rank is started (from the fault schedule).
    """

    def __init__(
        self, config: RunConfig, world_size: int, endpoint: Endpoint, launcher: Launcher, observer: Observer,
        resume: str = "", start_step: int = 0, joins: Sequence[int] = (), elastic: bool = True,
    ) -> None:  # fmt: skip
        self.config = replace(config, model=resolve(config.model))
        self.endpoint, self.launcher, self.observer = endpoint, launcher, observer
        self.space = Space(tensors(stand_in(config.model) if config.train.emulate else self.config.model))
        self.world_size, self.resume, self.step, self.elastic = world_size, resume, start_step, elastic
        parallel = config.parallel
        layers = parallel.stage_layers or split_layers(config.model.num_layers, parallel.pp * parallel.vp)
        self.parallel: ParallelConfig = replace(config.parallel, stage_layers=tuple(layers))
        self.layout: Layout | None = None
        self.target: Layout | None = None
        self._planned = self.parallel  # of the target; `parallel` stays that of the layout until the commit
        self.phase = Phase.STARTING
        self.epoch = -1
        self.members: dict[int, Member] = {}
        self._started = dict.fromkeys(range(world_size), time.monotonic())  # ranks on their way, and since when
        self.next_rank = world_size
        self.stop_requested = False
        self._links = Links(tick_s=min(0.02, config.elastic.heartbeat_limit_s / 10))
        self._patience = Patience()
        self._quiet: dict[int, Quiesced] = {}
        self._staged: dict[int, Staged] = {}
        self._proposals: dict[int, Proposal] = {}
        self._joins = sorted(joins)
        self._respawns: list[tuple[float, int]] = []
        self._save_due = False
        self._fresh: set[int] = set()  # ranks that joined since the layout was last chosen
        self._leaving: set[int] = set()  # ranks whose place will be taken away
        self._needed: set[int] = set()  # of these, those without whom no layout is left
        self._saved_step = start_step
        self._rate = rate(config.cluster, world_size)  # measured once, before ranks load the machine
        self._standing = Standing(self.space, self.config)
        self.history = ManagerHistory(config, self.space, start_step)
        self._wrong = 0  # transitions in a row in which what arrived was not what left
        self._change: Change | None = None
        self._participants: tuple[int, ...] = ()

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the last step is committed (and saved), or a stop was requested.

        Raises:
            ElasticError: too few ranks left, state lost, or a rank failed to start.
        """
        self.endpoint.serve(self._links.connected)
        while self.phase is not Phase.DONE:
            arrived = self._links.receive()
            if arrived is not None:
                self._take(*arrived)
            self._check_clock()

    def _take(self, link: Link, message: Any) -> None:
        """One message, or None for the end of a connection."""
        member = self.members.get(link.rank)
        known = member is not None and member.link is link
        if message is None:
            link.close()
            if known:
                self._lost(link.rank, "exit")
        elif isinstance(message, Hello):
            link.rank = message.rank
            self._joined(Member(message.rank, message.node, message.pid, link))
        elif known:
            self._handle(link.rank, message)

    def _handle(self, rank: int, message: Any) -> None:
        match message:
            case Proposal(epoch=epoch) if epoch == self.epoch and self.phase is Phase.RUNNING:
                assert self.layout is not None
                self._proposals[rank] = message
                if self._proposals.keys() >= set(self.layout.ranks):
                    self._commit_step()
            case Quiesced(epoch=epoch) if epoch == self.epoch and self.phase is Phase.QUIESCING:
                self._quiet[rank] = message
                self._open_if_quiet()
            case Staged(epoch=epoch) if epoch == self.epoch and self.phase is Phase.CHANGING:
                self._staged[rank] = message
                if self._staged.keys() >= set(self._participants):
                    self._commit_epoch()
            case Failed() if self.phase is Phase.QUIESCING:
                self._broadcast([rank], Fault(self.epoch))
            case Failed(epoch=epoch) if epoch == self.epoch:
                self._wrong += message.wrong
                if self._wrong == MOST_WRONG:
                    self.abort(f"{message.reason}, {MOST_WRONG} times in a row; {self._way_back()}")
                self._begin_change(message.reason)
            case Leaving():
                self._leaving.add(rank)
                if self.phase is Phase.RUNNING:
                    self._dismiss()
            case StopWanted():
                self.request_stop()
            case Saved():
                self._saved(message)
            case _:
                self.history.ignored(rank, message)  # of an epoch that is over

    def _check_clock(self) -> None:
        now = time.monotonic()
        for link in self._links.silent([m.link for m in self.members.values()], self.config.elastic.heartbeat_limit_s):
            self.launcher.kill(link.rank)  # fenced: it may wake up later
            self._lost(link.rank, "hang")
        for due, node in [r for r in self._respawns if r[0] <= now]:
            self._respawns.remove((due, node))
            self._spawn(node)
        for rank in self.launcher.ended():
            if rank in self._started:
                self._never_joined(rank, "ended before it joined; its error is above")
        limit_s = self.config.elastic.start_limit_s
        for rank in [r for r, since in self._started.items() if now - since > limit_s]:
            self.launcher.kill(rank)
            self._never_joined(rank, f"did not join within elastic.start_limit_s={limit_s:g}")
        if self._patience.waited_s((self.epoch, self.phase), now) > self.config.elastic.stall_limit_s:
            self._stalled()
        if self.stop_requested and self.phase is Phase.STARTING:
            self._finish("stopped before the first step")

    def _stalled(self) -> None:
        """A change that does not end is called off, which frees whom others hold up; who still does not answer is lost.

        A step that does not end is called off by the ranks themselves: their exchanges with the stalled one time out.
        """
        limit = f"within elastic.stall_limit_s={self.config.elastic.stall_limit_s:g}"
        if self.phase is Phase.CHANGING:
            missing = sorted(set(self._participants) - self._staged.keys())
            self._begin_change(f"ranks {', '.join(map(str, missing))} did not finish {limit}")
        elif self.phase is Phase.QUIESCING:
            for rank in sorted(self.members.keys() - self._quiet.keys()):
                self.launcher.kill(rank)
                if self.layout is None:
                    self.abort(f"rank {rank} did not answer {limit}; raise it if reading the state takes longer")
                self._lost(rank, "stall")

    @property
    def ended(self) -> bool:
        """Whether every rank was told to leave after it had joined."""
        return self.phase is Phase.DONE and self.layout is not None

    def request_stop(self) -> None:
        """End at the next step boundary, with a checkpoint; may be called from a signal handler."""
        self.stop_requested = True

    def request_join(self, node: int) -> None:
        """Have a fresh rank started on a node; may be called from another thread."""
        self._respawns.append((time.monotonic(), node))

    # -- membership ----------------------------------------------------------------------------------------------

    def _never_joined(self, rank: int, why: str) -> None:
        """The first ranks are all needed. A spare is only told of: one in its place would end the same way."""
        self._started.pop(rank)
        if self.phase is Phase.STARTING:
            self.abort(f"rank {rank} {why}")
        self.observer.never_joined(rank, why)

    def _joined(self, member: Member) -> None:
        self._started.pop(member.rank, None)
        self.members[member.rank] = member
        self.history.joined(member.rank, member.node, member.pid)
        self.observer.joined(member.rank, member.node)
        self._fresh.add(member.rank)
        if self.phase is Phase.STARTING and len(self.members) == self.world_size:
            self._begin_change("")
        elif self.phase is Phase.QUIESCING:
            self._broadcast([member.rank], Fault(self.epoch))

    def _spawn(self, node: int) -> None:
        self.launcher.spawn(self.next_rank, node)
        self._started[self.next_rank] = time.monotonic()
        self.next_rank += 1

    def _lost(self, rank: int, cause: str) -> None:
        member = self.members.pop(rank)
        for ranks in (self._fresh, self._leaving, self._needed):
            ranks.discard(rank)
        if self.phase is Phase.DONE:
            return
        self.history.lost(rank, cause, self.epoch, self.step, member.link)
        member.link.cut()  # should it wake up, nobody listens, and it learns so
        self.observer.lost(rank, cause, self.step)
        if self.layout is None:
            self.abort(f"rank {rank} ended before the first layout stood; its error, if it left one, is above")
        if not self.elastic:
            self.abort(
                f"rank {rank} died at step {self.step} and this launcher cannot go on without it; {self._way_back()}"
            )
        self._replace(member)
        self._quiet.pop(rank, None)
        if self.phase is Phase.QUIESCING:
            self._broadcast(self.members.keys() - self._quiet.keys(), Fault(self.epoch))
            self._open_if_quiet()
        elif self.phase is not Phase.RUNNING or (self.layout is not None and rank in self.layout.ranks):
            self._begin_change(f"rank {rank} lost")

    def _replace(self, member: Member) -> None:
        """Have a fresh rank in its node later, if that is wanted."""
        if self.config.elastic.spare_delay_s >= 0:
            self._respawns.append((time.monotonic() + self.config.elastic.spare_delay_s, member.node))

    def _dismiss(self) -> None:
        """Let those go who are leaving and hold nothing any more."""
        assert self.layout is not None
        for rank in sorted(self._leaving - set(self.layout.ranks)):
            member = self.members.pop(rank)
            member.link.send(Quit(""))
            for ranks in (self._fresh, self._leaving, self._needed):
                ranks.discard(rank)
            self.history.left(rank, self.epoch, self.step)
            self.observer.left(rank, self.step)
            self._replace(member)

    # -- changing ------------------------------------------------------------------------------------------------

    def _begin_change(self, reason: str, informed: Collection[int] = ()) -> None:
        """Call off whatever is under way; every member answers Quiesced. `informed` ranks know it from a Verdict."""
        self.epoch += 1
        if self.target is not None:
            self._standing.called_off(self.epoch - 1, self.target)
        self._quiet, self._staged, self._proposals, self.target = {}, {}, {}, None
        self._broadcast(self.members.keys() - set(informed), Fault(self.epoch))
        self.history.called_off(self.epoch, self.step, reason)
        redo = self.phase is Phase.RUNNING and not informed
        self.phase = Phase.QUIESCING
        self._change = Change(self.epoch, self.step, reason, self.layout, time.monotonic(), redo=redo)
        if not self.members:
            self._open_if_quiet()

    def _open_if_quiet(self) -> None:
        if not self.members:
            self.abort(f"no rank is left; {self._way_back()}")
        if self._quiet.keys() >= self.members.keys():
            self._open()

    def _open(self) -> None:
        """Choose the layout for the members that there are and send everybody there."""
        nodes = {r: m.node for r, m in self.members.items()}
        try:
            self._planned, self.target = self._choose(nodes)
            self._standing.settle(q.released for q in self._quiet.values())
            alive = self._standing.holders(self.members)
        except LostError as error:
            gone = ", ".join(str(r) for r in sorted(self._standing.ranks - nodes.keys()))
            self.abort(f"state is lost with ranks {gone}: {error}; {self._way_back()}", missing=str(error))
        except ValueError as error:
            self.abort(str(error))
        assert self.target is not None
        progressive = self.layout is not None and self.config.elastic.release == "progressive"
        if progressive:
            self._standing.cut(self.target)
        self._fresh = set()
        self._participants = tuple(sorted({*alive, *self.target.ranks}))
        counts = {name: seq for r in self._participants for name, seq in self._quiet[r].clean.items()}
        keep = tuple(name for name, seq in counts.items() if self._clean_everywhere(name, seq))
        order = Open(
            self.epoch, self.layout, self.target, self._planned, self.step, nodes, alive, self._participants, keep,
            self.resume if self.layout is None else "", self._standing.held if progressive else (),
            self._standing.portions, self.history.run,
        )  # fmt: skip
        self.phase = Phase.CHANGING
        self._broadcast(self._participants, order)
        self.history.opened(order)

    def _choose(self, nodes: dict[int, int]) -> tuple[ParallelConfig, Layout]:
        """The layout of those who stay; where they are too few, of all, until a fresh rank comes. Raises ValueError."""
        leaving = self._leaving if self.layout else ()  # the first layout needs everybody
        staying = {rank: node for rank, node in nodes.items() if rank not in leaving}
        try:
            found = choose(self.config, self.layout, self.parallel, staying, self._rate)
            self._needed = set()
        except ValueError:
            if staying == nodes:
                raise
            found = choose(self.config, self.layout, self.parallel, nodes, self._rate)
            self._needed = set(self._leaving)
        return found

    def _clean_everywhere(self, name: str, seq: int) -> bool:
        """Whether all members of a group are participants, have it quiet, and count the same operations."""
        ranks = {int(r) for r in name.partition("/")[2].split(",")}
        return ranks <= set(self._participants) and all(self._quiet[r].clean.get(name) == seq for r in ranks)

    def _commit_epoch(self) -> None:
        """All staged: compare the evidence, then switch."""
        assert self.target is not None and self._change is not None
        try:
            evidence = {r: s.census for r, s in self._staged.items()}
            check_census(self.space, evidence, self.layout is not None, self.step)
        except ValueError as error:
            self.abort(str(error))
        stop = self._stopping()
        self._save_due = self._save_due or (stop and self.step > self._saved_step and not self.config.train.emulate)
        self.history.switched(self.epoch, self.step, self.target, tuple(evidence))
        self._broadcast(self._participants, CommitEpoch(self.epoch, self._save_due, stop))
        moved = sum(s.bytes_received for s in self._staged.values())
        seconds = max(s.seconds for s in self._staged.values())
        self.layout, self.parallel, self.target = self.target, self._planned, None
        self._standing.committed(self.epoch, self.layout)
        self._wrong = 0
        self.phase = Phase.STOPPING if stop else Phase.RUNNING
        self.observer.changed(
            replace(self._change, after=self.layout, parallel=self.parallel, bytes_moved=moved, transfer_s=seconds)
        )
        self._dismiss()
        if stop and not self._save_due:
            self._finish()

    # -- steps ---------------------------------------------------------------------------------------------------

    def _commit_step(self) -> None:
        """Every rank of the layout has proposed: from this line on the step counts."""
        assert self.layout is not None
        proposals, self._proposals = self._proposals, {}
        decision = decide(self.config, [p.report for p in proposals.values()])
        assert decision.step == self.step, (decision.step, self.step)
        self.step += 1
        every, stop = self.config.checkpoint.every, self._stopping()
        due = stop or (every > 0 and self.step % every == 0)
        self._save_due = self._save_due or (due and not self.config.train.emulate)
        verdict = Verdict(decision, self._save_due, stop)
        leaving = (self._leaving - self._needed) & set(self.layout.ranks)
        grow = not stop and (bool(leaving) or self._grows())
        if grow:
            verdict = replace(verdict, change=self.epoch + 1)
        self.history.committed(decision, proposals, self.epoch)
        self._broadcast(self.layout.ranks, verdict)
        self.observer.committed(decision, proposals, self.epoch, self.layout)
        while self._joins and self._joins[0] < self.step + 1:
            self._joins.pop(0)
            self._spawn(self._emptiest_node())
        if stop:
            self.phase = Phase.STOPPING
            if not self._save_due:
                self._finish()
        elif grow:
            names = ", ".join(map(str, sorted(leaving)))
            self._begin_change(f"rank {names} leaves" if leaving else "a rank joins", informed=self.layout.ranks)

    def _grows(self) -> bool:
        """Whether ranks have joined that the best layout has a use for; others stand by until the next change."""
        if self._fresh:
            try:
                nodes = {r: m.node for r, m in self.members.items()}
                best = self._choose(nodes)
            except ValueError:
                return True  # what is wrong is said where the layout is chosen
            if best == (self.parallel, self.layout):
                self._fresh = set()
        return bool(self._fresh)

    def _stopping(self) -> bool:
        return self.stop_requested or self.step >= self.config.train.steps

    def _emptiest_node(self) -> int:
        count = dict.fromkeys(range(self.config.cluster.nodes), 0)
        for member in self.members.values():
            count[member.node] = count.get(member.node, 0) + 1
        return min(count, key=lambda n: (count[n], n))

    def _saved(self, message: Saved) -> None:
        self._save_due = False
        if not message.error:
            self._saved_step = message.step
        self.observer.saved(message.step, message.path, message.error)
        if self.phase is Phase.STOPPING:
            self._finish()

    # -- the end -------------------------------------------------------------------------------------------------

    def _finish(self, reason: str = "", missing: str = "") -> None:
        self.phase = Phase.DONE
        self.history.ended(self.step, reason, missing, tuple(self.members), self._standing.held)
        self._broadcast(self.members, Quit(reason))

    def _way_back(self) -> str:
        if self._saved_step:
            return f"restart to resume from step {self._saved_step}"
        return "there is no checkpoint yet to resume from; set checkpoint.every to have some"

    def abort(self, reason: str, missing: str = "") -> None:
        """Tell everybody to leave and raise `ElasticError`. `missing`: the coordinates that nobody holds any more."""
        self._finish(reason, missing)
        raise ElasticError(reason)

    def _broadcast(self, ranks: Iterable[int], message: Any) -> None:
        for rank in list(ranks):
            if rank in self.members:
                self.members[rank].link.send(message)
