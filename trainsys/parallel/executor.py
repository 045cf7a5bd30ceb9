"""Run a schedule: one loop over this lane's actions, and nothing decided here.

Receives are posted where the schedule says, sends go out as soon as their producer is done, and every message carries
its own tag, so the order in which the wire delivers does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.group import Expected, Group
from trainsys.comm.stamps import Stamps
from trainsys.parallel.stage import Runner
from trainsys.parallel.vocabulary_lane import VocabularyLane
from trainsys.schedule.actions import COMPUTE, COUNTERPART, VOCABULARY, Action, Kind
from trainsys.schedule.delivered import delivered_by
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.simulate import Event

_Message = tuple[Kind, int, int]  # kind of the action, its stage and microbatch


def _key(action: Action) -> _Message:
    return action.kind, action.stage, action.microbatch


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
        stamps: where it says what it computes, and for how long.
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
        stamps: Stamps | None = None,
    ) -> None:
        self.stamps = stamps or Stamps(1)
        self.vocabulary = vocabulary
        self.schedule, self.lane, self.runners = schedule, lane, runners
        self.group, self.rank_of, self.at = group, rank_of, at
        self.actions = schedule.lanes[lane]
        self._ways = {action: self._way(action) for action in self.actions if action.kind in COUNTERPART}
        self.events: list[Event] = []
        self.peak_activations = 0
        self.watch: Callable[[Action], None] | None = None  # called after each compute, copy and send
        self._arriving: dict[_Message, tuple[Expected, Tensor]] = {}
        self._ready: dict[_Message, Tensor | None] = {}
        self._sending: dict[_Message, tuple[Work, Tensor]] = {}
        proven = delivered_by(schedule, lane)
        self._proves = {_key(received): [_key(sent) for sent in sends] for received, sends in proven.items()}
        self._started = self._blocked = 0.0  # when the action under way began, and how long this thread had waited

    def run(self) -> None:
        """Execute every action of the lane; returns when all sends have left.

        Raises:
            CommError: a peer died or the step was aborted.
        """
        self._arriving, self._ready, self._sending = {}, {}, {}
        self.events, active, self.peak_activations = [], 0, 0
        if self.vocabulary is not None:
            self.vocabulary.begin()
        for action in self.actions:
            self._begin(action)
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
            elif action.kind is Kind.R:
                self.runners[action.stage].recompute(action.microbatch)
            elif action.kind is Kind.OFFLOAD:
                self.runners[action.stage].offload(action.microbatch)
            elif action.kind is Kind.RELOAD:
                self.runners[action.stage].reload(action.microbatch)
            elif action.kind in (Kind.RECV_F, Kind.RECV_B):
                self._receive(action)
                continue
            elif action.kind in VOCABULARY:
                self.at("backward" if action.kind in (Kind.T, Kind.G) else "forward")
                self._pass(action)
            else:
                self.at("send")
                self._send(action)
            self._end(action)
            if self.watch is not None:
                self.watch(action)
        if self._sending:
            assert self.group is not None
            self.group.wait_all([work for work, _ in self._sending.values()])
            self._sending.clear()
        if self.vocabulary is not None:
            self.vocabulary.finish()

    def _begin(self, action: Action) -> None:
        self.stamps.enter(action.kind.value)
        self._started, self._blocked = time.perf_counter(), self.stamps.blocked_s

    def _end(self, action: Action) -> None:
        now = time.perf_counter()
        self.events.append(Event(self.lane, action, self._started, now))
        if action.kind in COMPUTE:
            self.stamps.computed(action.kind.value, now - self._started - (self.stamps.blocked_s - self._blocked))

    def _forward(self, action: Action) -> None:
        source = self.schedule.routes.before(action.stage, action.microbatch)
        x = None if source is None else self._input(Kind.RECV_F, source, action)
        if self.vocabulary is not None and source is None:
            self.vocabulary.wait(action)
            x = self.vocabulary.input(action.microbatch)
        self._begin(action)  # waiting for the input is bubble
        out = self.runners[action.stage].forward(action.microbatch, x)
        if self.vocabulary is not None and action.stage == self.schedule.routes.num_stages - 1:
            assert out is not None
            self.vocabulary.output(action.microbatch, out)
            return
        self._ready[Kind.SEND_F, action.stage, action.microbatch] = out

    def _backward(self, action: Action) -> None:
        source = self.schedule.routes.after(action.stage, action.microbatch)
        grad = None if source is None else self._input(Kind.RECV_B, source, action)
        if self.vocabulary is not None and source is None:
            self.vocabulary.wait(action)
            grad = self.vocabulary.gradient(action.microbatch)
        self._begin(action)
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
        self._begin(action)
        self.vocabulary.run(action)

    def _input(self, kind: Kind, source: int, action: Action) -> Tensor:
        """What a compute action waits for: a message, or the result of stage `source` on this very lane."""
        key = (kind, action.stage, action.microbatch)
        if key in self._arriving:
            assert self.group is not None
            expected, buffer = self._arriving.pop(key)
            self.group.take(expected)
            self.group.finish([self._sending.pop(sent)[0] for sent in self._proves[key]])
            return buffer
        made_by = Kind.SEND_F if kind is Kind.RECV_F else Kind.SEND_B
        local = self._ready.pop((made_by, source, action.microbatch))
        assert local is not None
        return local

    def _receive(self, action: Action) -> None:
        assert self.group is not None
        peer, tag = self._ways[action]
        buffer = self.runners[action.stage].boundary(action.microbatch)
        expected = self.group.expect(self.group.irecv(buffer, peer, tag))
        self._arriving[action.kind, action.stage, action.microbatch] = (expected, buffer)

    def _send(self, action: Action) -> None:
        assert self.group is not None
        peer, tag = self._ways[action]
        tensor = self._ready.pop((action.kind, action.stage, action.microbatch))
        assert tensor is not None
        tensor = tensor.contiguous()
        self._sending[action.kind, action.stage, action.microbatch] = (self.group.isend(tensor, peer, tag), tensor)

    def _way(self, action: Action) -> tuple[int, int]:
        """The rank at the other end of a message, and its tag, of which there is one per message of a step: to which
        stage, of which microbatch, in which direction."""
        other = self.schedule.counterpart(action)
        assert other is not None, f"{action} has no other end"
        receiver = other.stage if action.kind in (Kind.SEND_F, Kind.SEND_B) else action.stage
        backward = action.kind in (Kind.SEND_B, Kind.RECV_B)
        tag = 2 * (receiver * self.schedule.routes.num_microbatches + action.microbatch) + backward
        return self.rank_of[self.schedule.lane_of(other.stage, other.microbatch)], tag
