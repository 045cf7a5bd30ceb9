"""Run a schedule: one loop over this lane's actions, and nothing decided here.

Receives are posted where the schedule says, sends go out as soon as their producer is done, and every message carries
its own tag, so the order in which the wire delivers does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.group import Group
from trainsys.parallel.stage import Runner
from trainsys.parallel.vocabulary_lane import VocabularyLane
from trainsys.schedule.actions import VOCABULARY, Action, Kind
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.simulate import Event


class Executor:
    """Drives the stages of one lane through a schedule.

    Args:
        schedule: with communication inserted.
        lane: this rank's lane.
        runners: stage of the schedule -> what runs it; one without vp.
        group: contains every pipeline neighbour.
        rank_of: lane -> global rank with the same cp and tp index as this rank.
        vocabulary: what runs the passes of a schedule with the vocabulary on all lanes.
        at: called with the phase (``forward``, ``send``, ``backward``) before each action of it; faults hang here.
    """

    def __init__(
        self,
        schedule: Schedule,
        lane: int,
        runners: Mapping[int, Runner],
        group: Group | None,
        rank_of: Mapping[int, int],
        at: Callable[[str], None] = lambda phase: None,
        vocabulary: VocabularyLane | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.schedule, self.lane, self.runners = schedule, lane, runners
        self.group, self.rank_of, self.at = group, rank_of, at
        self.actions = schedule.lanes[lane]
        self.events: list[Event] = []
        self.peak_activations = 0
        self._arriving: dict[tuple[Kind, int, int], tuple[Work, Tensor]] = {}
        self._ready: dict[tuple[Kind, int, int], Tensor | None] = {}
        self._sending: list[tuple[Work, Tensor]] = []
        self._started = 0.0  # of the action under way

    def run(self) -> None:
        """Execute every action of the lane; returns when all sends have left.

        Raises:
            CommError: a peer died or the step was aborted.
        """
        self._arriving, self._ready, self._sending = {}, {}, []
        self.events, active, self.peak_activations = [], 0, 0
        if self.vocabulary is not None:
            self.vocabulary.begin()
        for action in self.actions:
            self._started = time.perf_counter()
            if action.kind is Kind.F:
                self.at("forward")
                self._forward(action)
                active += 1
                self.peak_activations = max(self.peak_activations, active)
            elif action.kind is Kind.W:
                self.runners[action.stage].backward_weight(action.microbatch)
                active -= 1
            elif action.kind in (Kind.B, Kind.I):
                self.at("backward")
                self._backward(action)
                active -= action.kind is Kind.B
            elif action.kind in (Kind.RECV_F, Kind.RECV_B):
                self._receive(action)
                continue
            elif action.kind in VOCABULARY:
                self.at("backward" if action.kind in (Kind.T, Kind.G) else "forward")
                self._pass(action)
            else:
                self.at("send")
                self._send(action)
            self.events.append(Event(self.lane, action, self._started, time.perf_counter()))
        if self.vocabulary is not None:
            self._sending += self.vocabulary.sending
        assert self.group is not None or not self._sending
        for work, _ in self._sending:
            self.group.wait(work)  # type: ignore[union-attr]

    def _forward(self, action: Action) -> None:
        x = self._input(Kind.RECV_F, action) if action.stage else None
        if self.vocabulary is not None and not action.stage:
            self.vocabulary.wait(action)
            x = self.vocabulary.input(action.microbatch)
        self._started = time.perf_counter()  # waiting for the input is bubble
        out = self.runners[action.stage].forward(action.microbatch, x)
        if self.vocabulary is not None and action.stage == self.schedule.routes.num_stages - 1:
            assert out is not None
            self.vocabulary.output(action.microbatch, out)
            return
        self._ready[Kind.SEND_F, action.stage, action.microbatch] = out

    def _backward(self, action: Action) -> None:
        last = action.stage == self.schedule.routes.num_stages - 1
        grad = None if last else self._input(Kind.RECV_B, action)
        if self.vocabulary is not None and last:
            self.vocabulary.wait(action)
            grad = self.vocabulary.gradient(action.microbatch)
        self._started = time.perf_counter()
        runner = self.runners[action.stage]
        out = (runner.backward if action.kind is Kind.B else runner.backward_input)(action.microbatch, grad)
        if self.vocabulary is not None and not action.stage:
            assert out is not None
            self.vocabulary.input_gradient(action.microbatch, out)
            return
        self._ready[Kind.SEND_B, action.stage, action.microbatch] = out

    def _pass(self, action: Action) -> None:
        """E, S, T or G."""
        assert self.vocabulary is not None
        self.vocabulary.wait(action)
        self._started = time.perf_counter()
        self.vocabulary.run(action)

    def _input(self, kind: Kind, action: Action) -> Tensor:
        """What a compute action waits for: a message, or the result of the neighbour stage on this very lane."""
        key = (kind, action.stage, action.microbatch)
        if key in self._arriving:
            assert self.group is not None
            work, buffer = self._arriving.pop(key)
            self.group.wait(work)
            return buffer
        made_by = Kind.SEND_F if kind is Kind.RECV_F else Kind.SEND_B
        stage = action.stage + (-1 if kind is Kind.RECV_F else 1)
        local = self._ready.pop((made_by, stage, action.microbatch))
        assert local is not None
        return local

    def _receive(self, action: Action) -> None:
        assert self.group is not None
        forward = action.kind is Kind.RECV_F
        peer = self._peer(action.stage + (-1 if forward else 1), action.microbatch)
        buffer = self.runners[action.stage].boundary()
        work = self.group.irecv(buffer, peer, self._tag(forward, action.stage + (0 if forward else 1), action))
        self._arriving[action.kind, action.stage, action.microbatch] = (work, buffer)

    def _send(self, action: Action) -> None:
        assert self.group is not None
        forward = action.kind is Kind.SEND_F
        peer = self._peer(action.stage + (1 if forward else -1), action.microbatch)
        tensor = self._ready.pop((action.kind, action.stage, action.microbatch))
        assert tensor is not None
        tensor = tensor.contiguous()
        tag = self._tag(forward, action.stage + (1 if forward else 0), action)
        self._sending.append((self.group.isend(tensor, peer, tag), tensor))

    def _peer(self, stage: int, microbatch: int) -> int:
        return self.rank_of[self.schedule.lane_of(stage, microbatch)]

    def _tag(self, forward: bool, boundary: int, action: Action) -> int:
        """Unique per message of a step: which boundary (numbered by the later stage), microbatch and direction."""
        return 2 * (boundary * self.schedule.routes.num_microbatches + action.microbatch) + (not forward)
