"""The manager: epochs of membership, and the single authority that commits steps.

One loop, one state. A message can only move it along these lines:

    STARTING ──all said Hello──▶ QUIESCING ──all Quiesced──▶ CHANGING ──all Staged, census right──▶ RUNNING
                                     ▲                          │ a rank lost                          │ a rank lost,
                                     └──────────────────────────┴──────────────────────────────────────┘ or one joins

A step counts when every rank of the layout has proposed it (Verdict); a layout counts when every participant has staged
it (CommitEpoch). Nothing else is ever shared knowledge, so a fault at any instant leaves one unambiguous state. Where
the source is released as the destination arrives, `Standing` keeps the book of what stands where.

The manager itself may die. Before it tells anybody anything it enters it in the agent's `Book`, from which another
manager takes over: `elastic.takeover`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from trainsys.config import ParallelConfig, RunConfig
from trainsys.elastic.book import Book
from trainsys.elastic.census import check_census
from trainsys.elastic.control import GIVEN_UP
from trainsys.elastic.endpoint import serve
from trainsys.elastic.faults import FaultEvent
from trainsys.elastic.fingerprints import code_print, config_print
from trainsys.elastic.foresight import Foresight
from trainsys.elastic.kept_groups import clean_groups
from trainsys.elastic.links import Absent, Link, Links
from trainsys.elastic.lookout import Lookout
from trainsys.elastic.manager_history import ManagerHistory
from trainsys.elastic.member import Member, mismatch
from trainsys.elastic.messages import (
    CommitEpoch,
    Failed,
    Fault,
    Hello,
    Leaving,
    Open,
    Prepared,
    Proposal,
    Quiesced,
    Quit,
    Saved,
    Staged,
    StopWanted,
    Verdict,
)
from trainsys.elastic.outbox import Outbox
from trainsys.elastic.patience import Patience
from trainsys.elastic.phase import ElasticError, Phase
from trainsys.elastic.preparing import Preparing
from trainsys.elastic.record import Change
from trainsys.elastic.recruits import Recruits
from trainsys.elastic.saving import Saving
from trainsys.elastic.selection import Selection
from trainsys.elastic.standing import Standing
from trainsys.elastic.strikes import Strikes
from trainsys.elastic.takeover import missed
from trainsys.models.geometry import resolve, split_layers, tensors
from trainsys.models.stand_in import stand_in
from trainsys.parallel.step import decide
from trainsys.space.coverage import LostError
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space

MOST_WRONG = 3  # then it is no accident
_ITS_ERROR = "its error, if it left one, is above"


class Manager:
    """Runs one training job, or goes on with it.

    Args:
        config: of the run; `config.parallel` is the first layout.
        world_size: ranks of the first layout.
        outbox: to the agent, which starts and fences ranks and keeps the record.
        book: of the manager before, or a new one.
        resume: checkpoint folder to start from, or empty.
        faults: those of the manager strike here.
        foresight: the planner's answers, by default worked out when they are needed.
    """

    def __init__(
        self, config: RunConfig, world_size: int, outbox: Outbox, book: Book, resume: str = "",
        faults: Sequence[FaultEvent] = (), foresight: Foresight | None = None,
    ) -> None:  # fmt: skip
        self.config = replace(config, model=resolve(config.model))
        self.outbox, self.book = outbox, book
        self.space = Space(tensors(stand_in(config.model) if config.train.emulate else self.config.model))
        self.world_size, self.resume = world_size, resume
        parallel = config.parallel
        layers = parallel.stage_layers or split_layers(config.model.num_layers, parallel.pp * parallel.vp)
        self.parallel: ParallelConfig = book.parallel or replace(config.parallel, stage_layers=tuple(layers))
        self.layout = book.layout
        self.target: Layout | None = None
        self._planned = self.parallel  # of the target; `parallel` stays that of the layout until the commit
        self.phase = Phase.RUNNING if book.layout else Phase.STARTING
        self.epoch, self.step, self.stop_requested = book.epoch, book.step, book.stop_requested
        self._failure = book.failure
        self.members = {rank: Member(rank, node, pid, Absent(book.heard)) for rank, node, pid in book.members}
        self._recruits = Recruits(config, book, outbox.spawn)
        self._gone = set(book.gone)
        self._links = Links(tick_s=min(0.02, config.elastic.heartbeat_limit_s / 10))
        self._patience = Patience()
        self._quiet: dict[int, Quiesced] = {}
        self._staged: dict[int, Staged] = {}
        self._proposals: dict[int, Proposal] = {}
        self._saving = Saving(config, book)
        assert book.rate is not None
        self.selection = Selection(self.config, world_size, book.rate, foresight)
        self.selection.leaving |= book.leaving
        self._standing = Standing(self.space, self.config, book)
        self.history = ManagerHistory(config, self.space, book, outbox.line)
        self._lookout = Lookout(self.config, self.selection, self.history, outbox, book.lookout)
        self._preparing = Preparing(self.config, self.selection, self._standing)
        self._strikes = Strikes(config, faults)
        self._prints = code_print(), config_print(config)
        self._wrong = book.wrong  # transitions in a row in which what arrived was not what left
        self._change: Change | None = None
        self._participants: tuple[int, ...] = ()
        self._told = book.participants  # those of the layout that stands
        self._verdict, self._stands = book.verdict, book.stands

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self, listening: socket.socket, authkey: bytes) -> None:
        """Until the last step is committed (and saved), or a stop was requested.

        Raises:
            ElasticError: too few ranks left, state lost, or a rank failed to start.
        """
        if self.layout is not None and not self.book.over:
            self._begin_change("another manager took over")
        serve(listening, authkey, self._links.connected)
        while self.phase is not Phase.DONE and not self.book.over:
            arrived = self._links.receive()
            if arrived is not None:
                self._take(*arrived)
                if isinstance(arrived[1], Proposal) and self._proposals and self._links.checked_lately():
                    continue  # more will come, one per rank, and looking around costs as much as there are ranks
            self._check_clock()
            self._enter()
        if self.book.failure:
            raise ElasticError(self.book.failure)

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
            self._greet(message, link)
        elif known:
            self._handle(link.rank, message)

    def _handle(self, rank: int, message: Any) -> None:
        match message:
            case Proposal(epoch=epoch) if epoch == self.epoch and self.phase is Phase.RUNNING:
                assert self.layout is not None
                self._proposals[rank] = message
                if len(self._proposals) >= len(ranks := self.layout.ranks) and self._proposals.keys() >= set(ranks):
                    self._commit_step()
            case Quiesced(epoch=epoch) if epoch == self.epoch and self.phase is Phase.QUIESCING:
                self._quiet[rank] = message
                self._open_if_quiet()
            case Staged(epoch=epoch) if epoch == self.epoch and self.phase is Phase.CHANGING:
                self._staged[rank] = message
                if self._staged.keys() >= set(self._participants):
                    self._commit_epoch()
            case Prepared(epoch=epoch):
                self._preparing.caught_up(rank, epoch, message.error)
            case Failed() if self.phase is Phase.QUIESCING:
                self._tell([rank], Fault(self.epoch))
            case Failed(epoch=epoch) if epoch == self.epoch:
                self._wrong += message.wrong
                if self._wrong == MOST_WRONG:
                    self.abort(f"{message.reason}, {MOST_WRONG} times in a row; {self._way_back()}")
                self._begin_change(message.reason)
            case Leaving():
                self.selection.leaving.add(rank)
                if self.phase is Phase.RUNNING:
                    self._dismiss()
            case StopWanted():
                self.stop_requested = True
            case Saved():
                self._saved(message)
            case _:
                self.history.ignored(rank, message)  # of an epoch that is over

    def _check_clock(self) -> None:
        now = time.monotonic()
        self.stop_requested |= self.outbox.stop_wanted
        self.selection.foresight.read()
        links = {member.link: rank for rank, member in self.members.items()}
        for link in self._links.silent(tuple(links), self.config.elastic.heartbeat_limit_s):
            self.outbox.kill(links[link])  # fenced: it may wake up later
            self._lost(links[link], "hang")
        if self.phase is Phase.RUNNING:
            self._check_hang()
        self._recruits.start_due(now)
        for node in self.outbox.room():
            self._recruits.start(node)
            self.outbox.took(node)
        for rank in self.outbox.ended():
            if rank in self._recruits.started:
                self._never_joined(rank, f"ended before it joined; {_ITS_ERROR}")
            elif rank in self.members and isinstance(self.members[rank].link, Absent):
                self._lost(rank, "exit")
        for rank in self._recruits.overdue(now):
            self.outbox.kill(rank)
            self._never_joined(rank, f"did not join within elastic.start_limit_s={self.config.elastic.start_limit_s:g}")
        if self._patience.waited_s((self.epoch, self.phase), now) > self.config.elastic.stall_limit_s:
            self._stalled()
        if self.stop_requested and self.phase is Phase.STARTING:
            self._finish("stopped before the first step")

    def _check_hang(self) -> None:
        """Go on without a rank that hangs in its own work; over a link that lost a message connect anew."""
        rank, reason = self._lookout.hung(self.members, self.epoch, self.step)
        if rank is not None:
            self.outbox.kill(rank)
            self._lost(rank, "stall")
        elif reason:
            self._begin_change(reason)

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
                self.outbox.kill(rank)
                if self.layout is None:
                    self.abort(f"rank {rank} did not answer {limit}; raise it if reading the state takes longer")
                self._lost(rank, "stall")

    # -- membership ----------------------------------------------------------------------------------------------

    def _never_joined(self, rank: int, why: str) -> None:
        """The first ranks are all needed. A spare is only told of: one in its place would end the same way."""
        self._recruits.arrived(rank)
        if self.phase is Phase.STARTING and rank < self.world_size:
            self.abort(f"rank {rank} {why}")
        self.outbox.never_joined(rank, why)

    def _greet(self, hello: Hello, link: Link) -> None:
        """A rank has connected: a fresh one, or one that has lost the manager before."""
        differs = mismatch(hello, self._prints)
        if hello.rank in self._gone or (hello.again and hello.rank not in self.members) or differs:
            link.send(Quit(differs or GIVEN_UP))
            if differs and hello.rank in self._recruits.started:
                self._never_joined(hello.rank, differs)
        elif hello.rank not in self.members:
            self._joined(Member(hello.rank, hello.node, hello.pid, link))
        else:
            self.members[hello.rank] = Member(hello.rank, hello.node, hello.pid, link)
            self.history.returned(hello.rank)
            self._tell([hello.rank], *missed(self.book, hello))
            if self.phase is Phase.QUIESCING:
                self._tell([hello.rank], Fault(self.epoch))
            self._start_if_complete()

    def _joined(self, member: Member) -> None:
        self._recruits.arrived(member.rank)
        self.members[member.rank] = member
        self.history.joined(member.rank, member.node, member.pid)
        self.outbox.joined(member.rank, member.node)
        self.selection.fresh.add(member.rank)
        if self.phase is Phase.QUIESCING:
            self._tell([member.rank], Fault(self.epoch))
        self._start_if_complete()

    def _start_if_complete(self) -> None:
        here = {rank for rank, member in self.members.items() if not isinstance(member.link, Absent)}
        if self.phase is Phase.STARTING and here.issuperset(range(self.world_size)):
            self._begin_change("")

    def _lost(self, rank: int, cause: str) -> None:
        member = self.members.pop(rank)
        self._gone.add(rank)
        self.selection.forget(rank)
        if self.phase is Phase.DONE:
            return
        self.history.lost(rank, cause, self.epoch, self.step, member.link)
        member.link.cut()  # should it wake up, nobody listens, and it learns so
        self.outbox.lost(rank, cause, self.step)
        if self.layout is None and rank < self.world_size:
            self.abort(f"rank {rank} ended before the first layout stood; {_ITS_ERROR}")
        self._recruits.replace(member.node)
        if self.phase is Phase.STARTING:
            return  # a spare
        self._quiet.pop(rank, None)
        if self.phase is Phase.QUIESCING:
            self._preparing.drop()
            self._tell(self.members.keys() - self._quiet.keys(), Fault(self.epoch))
            self._open_if_quiet()
        elif self.phase is not Phase.RUNNING or self._preparing.takes_part(rank) or rank in (self.layout or ()):
            self._begin_change(f"rank {rank} lost")

    def _dismiss(self) -> None:
        """Let those go who are leaving and hold nothing any more."""
        assert self.layout is not None
        for rank in sorted(self.selection.leaving - set(self.layout.ranks)):
            if self._preparing.takes_part(rank):
                continue  # others count on it; the change after that lets it go
            self._tell([rank], Quit(""))
            member = self.members.pop(rank)
            self._gone.add(rank)
            self.selection.forget(rank)
            self.history.left(rank, self.epoch, self.step)
            self.outbox.left(rank, self.step)
            self._recruits.replace(member.node)

    # -- changing ------------------------------------------------------------------------------------------------

    def _begin_change(self, reason: str, informed: Collection[int] = ()) -> None:
        """Call off whatever is under way; every member answers Quiesced. `informed` ranks know it from a Verdict."""
        self.epoch += 1
        if not informed:
            self._preparing.drop()
        if self.target is not None:
            self._standing.called_off(self.epoch - 1, self.target)
        self._quiet, self._staged, self._proposals, self.target = {}, {}, {}, None
        self.history.called_off(self.epoch, self.step, reason)
        self._tell(self.members.keys() - set(informed), Fault(self.epoch))
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
        assert self._change is not None
        began, ready = time.monotonic(), self._preparing.take(self.members)
        try:
            if ready is not None:
                self._planned, self.target = ready.parallel, ready.dst
            else:
                self._planned, self.target = self.selection.choose(self.layout, self.parallel, nodes)
                self.selection.fresh = set()
            self._standing.settle(q.released for q in self._quiet.values())
            alive = self._standing.holders(self.members)
        except LostError as error:
            gone = ", ".join(str(r) for r in sorted(self._standing.ranks - nodes.keys()))
            self.abort(f"state is lost with ranks {gone}: {error}; {self._way_back()}", missing=str(error))
        except ValueError as error:
            self.abort(str(error))
        assert self.target is not None
        self._change = replace(self._change, decide_s=time.monotonic() - began)
        progressive = self.layout is not None and self.config.elastic.release == "progressive"
        if progressive:
            self._standing.cut(self.target)
        self._participants = tuple(sorted({*alive, *self.target.ranks}))
        keep = clean_groups({r: self._quiet[r].clean for r in self._participants}) if ready is None else ()
        order = Open(
            self.epoch, self.layout, self.target, self._planned, self.step, nodes, alive, self._participants, keep,
            self.resume if self.layout is None else "", self._standing.held if progressive else (),
            self._standing.portions, self.history.run, ready is not None,
        )  # fmt: skip
        self.phase = Phase.CHANGING
        self.history.opened(order)
        self._tell(self._participants, order)
        self.selection.foresee(self.target, self._planned, nodes)

    def _commit_epoch(self) -> None:
        """All staged: compare the evidence, then switch."""
        assert self.target is not None and self._change is not None
        try:
            evidence = {r: s.census for r, s in self._staged.items()}
            check_census(self.space, evidence, self.layout is not None, self.step)
        except ValueError as error:
            self.abort(str(error))
        stop = self._stopping()
        save = self._saving.tell_again(self.step, stop)
        self.history.switched(self.epoch, self.step, self.target, tuple(evidence))
        moved = sum(s.bytes_received for s in self._staged.values())
        seconds = max(s.seconds for s in self._staged.values())
        self.layout, self.parallel, self.target = self.target, self._planned, None
        self._standing.committed(self.epoch, self.layout)
        self._lookout.entered(self.layout, self.parallel, self.members)
        self._wrong, self._stands, self._told = 0, self.epoch, self._participants
        self.phase = Phase.STOPPING if stop else Phase.RUNNING
        self.outbox.changed(
            replace(self._change, after=self.layout, parallel=self.parallel, bytes_moved=moved, transfer_s=seconds)
        )
        self._tell(self._participants, CommitEpoch(self.epoch, save, stop))
        self._dismiss()
        self.selection.foresee(self.layout, self.parallel, {r: m.node for r, m in self.members.items()})
        if stop and not self._saving.pending:
            self._finish()

    # -- steps ---------------------------------------------------------------------------------------------------

    def _commit_step(self) -> None:
        """Every rank of the layout has proposed: from this line on the step counts."""
        assert self.layout is not None
        proposals, self._proposals = self._proposals, {}
        decision = decide(self.config, [p.report for p in proposals.values()])
        assert decision.step == self.step, (decision.step, self.step)
        self._strikes.at("collect", self.step)
        self._lookout.committed(self.step, self.epoch, proposals, self.members)
        self.step += 1
        stop = self._stopping()
        save = self._saving.tell(self.step, stop)
        layout, parallel, nodes = self.layout, self.parallel, {r: m.node for r, m in self.members.items()}
        verdict = self._preparing.complete(
            Verdict(decision, save, stop), self.epoch, self.step, layout, parallel, nodes,
            lambda: self._lookout.remedy(self.step, layout, parallel, self.members),
        )  # fmt: skip
        self.history.committed(decision, proposals, self.epoch)
        self.outbox.committed(decision, proposals, self.epoch, self.layout)
        self._verdict, told = replace(verdict, prepare=None), self._preparing.told(layout.ranks)
        self._tell(told, verdict)
        self._recruits.join(self.step, nodes.values())
        if stop:
            self.phase = Phase.STOPPING
            if not self._saving.pending:
                self._finish()
        elif verdict.change >= 0:
            self._begin_change(self._preparing.reason, informed=told)

    def _stopping(self) -> bool:
        return self.stop_requested or self.step >= self.config.train.steps

    def _saved(self, message: Saved) -> None:
        self._saving.saved(message)
        self.outbox.saved(message.step, message.path, message.error)
        if self.phase is Phase.STOPPING and not self._saving.pending:
            self._finish()

    # -- the end -------------------------------------------------------------------------------------------------

    def _finish(self, reason: str = "", missing: str = "") -> None:
        self.phase = Phase.DONE
        self.history.ended(self.step, reason, missing, tuple(self.members), self._standing.held)
        self._tell(self.members, Quit(reason))

    def _way_back(self) -> str:
        if self._saving.saved_step:
            return f"restart to resume from step {self._saving.saved_step}"
        return "there is no checkpoint yet to resume from; set checkpoint.every to have some"

    def abort(self, reason: str, missing: str = "") -> NoReturn:
        """Tell everybody to leave and raise `ElasticError`. `missing`: the coordinates that nobody holds any more."""
        self._failure = reason
        self._finish(reason, missing)
        raise ElasticError(reason)

    def _tell(self, ranks: Iterable[int], *messages: Any) -> None:
        """What is told has been entered."""
        self._enter()
        present = [rank for rank in ranks if rank in self.members]
        for message in messages:
            for i, rank in enumerate(present):
                if i == len(present) // 2:
                    self._strikes.after(message, self.step)
                self.members[rank].link.send(message)

    def _enter(self) -> None:
        """Everything decided since the last time, for whoever takes over."""
        self.book = replace(
            self.book, epoch=self.epoch, step=self.step, stands=self._stands, layout=self.layout,
            parallel=self.parallel if self.layout else None, participants=self._told, verdict=self._verdict,
            members=tuple((m.rank, m.node, m.pid) for m in self.members.values()), gone=frozenset(self._gone),
            leaving=frozenset(self.selection.leaving), wrong=self._wrong, stop_requested=self.stop_requested,
            over=self.phase is Phase.DONE, failure=self._failure, lookout=self._lookout.memory,
            **self._recruits.entry(), **self._saving.entry(), **self._standing.entry(self.epoch, self.target),
        )  # fmt: skip
        self.outbox.post(self.book)
