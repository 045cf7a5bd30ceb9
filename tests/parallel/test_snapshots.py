"""Mirrors by replay, as full states, as changes: the same bits as their owners, whether or not steps are clipped."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import replace
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.parallel import bodies
from tests.parallel.runs import assert_same_bits, expectation, run_all, run_config
from trainsys.comm.group import CommError
from trainsys.models.geometry import resolve, tensors
from trainsys.parallel.optimizer import adamw
from trainsys.parallel.own_stream import Once
from trainsys.parallel.snapshots.copies import Pending
from trainsys.parallel.snapshots.delta import decode, encode
from trainsys.parallel.snapshots.keeper import Keeper
from trainsys.parallel.state import FlatState, initial_state
from trainsys.parallel.step import Decision
from trainsys.space.build import build_layout
from trainsys.space.layout import Piece
from trainsys.space.tensor import Space
from trainsys.testing import RankPool

GRIDS: list[dict[str, Any]] = [{"dp": 4, "zero": 2}, {"dp": 2, "pp": 2}, {"pp": 2, "stage_replicas": (3, 1), "zero": 1}]


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_the_ways_have_the_same_bits(ranks: RankPool, clip: float) -> None:
    """With clip=1 the first steps are clipped, and replayed whatever was asked for."""
    plain = run_config("float32")
    plain = replace(plain, optim=replace(plain.optim, clip=clip))
    expected = expectation(ranks, 1, plain, steps=11)
    configs = [
        replace(
            run_config("float32", **GRIDS[i % len(GRIDS)]),
            optim=plain.optim,
            elastic=replace(plain.elastic, snapshot=way, tolerate=tolerate),
        )
        for i, (way, tolerate) in enumerate([("full", 1), ("delta", 2), ("auto", 3), ("replay", 2), ("auto", 2)])
    ]
    for got in run_all(ranks, 4, configs, steps=11):
        assert_same_bits(got, expected)
        assert got.mirrored > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_what_changes_is_sent(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    before = [torch.randn(n, dtype=dtype) for n in (1001, 1, 40)]
    before[0][7] = float("nan")
    after = [t.clone() for t in before]
    after[0][3::10] += 1
    after[2][0] = -0.0
    data = encode(list(zip(before, after, strict=True)))
    changed = sum(int((a.view(torch.uint8) != b.view(torch.uint8)).view(len(a), -1).any(1).sum())
                  for a, b in zip(before, after, strict=True))  # fmt: skip
    assert len(data) == 126 + 1 + 5 + changed * dtype.itemsize
    got = [torch.full_like(t, 9.0) for t in before]
    decode(data, list(zip(before, got, strict=True)))
    for a, b in zip(got, after, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("error", [None, CommError("a peer went"), AssertionError("half a message")])
def test_who_waits_beside_is_told_whatever_happens(error: Exception | None) -> None:
    """And the messages' time counts in the trial of the ways."""

    def then() -> None:
        if error is not None:
            raise error

    told = SimpleQueue[Exception | None]()
    mesh = SimpleNamespace(finish=lambda works: time.sleep(0.05))
    pending = Pending(torch.empty(0), works=[cast(Any, None)], then=then, seconds=1.0)
    Keeper.when_kept(cast(Any, SimpleNamespace(mesh=mesh)), pending, told.put)
    assert told.get(timeout=5) is error
    assert pending.seconds >= 1.05


def test_mirrors_have_their_turn_beside_the_next_step() -> None:
    """A verdict changes what a rank holds at once; its mirrors then, or as soon as somebody looks."""
    config = run_config("float32", dp=4, zero=1)
    space = Space(tensors(resolve(config.model)))
    layout = build_layout(
        config.parallel, [config.model.num_layers], range(4), config.elastic.chunk, lambda r: r, tolerate=1
    )
    state = initial_state(space, layout, 0, resolve(config.model), 0, torch.float32, torch.device("cpu"))
    keeper = Keeper(config, space, layout, 0, None, state)
    held, grad = keeper.copies.held, torch.randn(state.numel)
    assert 0 < held < state.numel
    wanted, before = state.copied(), state.copied()
    for step in range(3):
        decision = Decision(step, 0.0, 1.0, 1e-3, 1.0)
        adamw(config.optim, wanted.slots, grad.clone(), decision.update)
        keeper.apply(pending := Pending(grad.clone()), decision)
        assert pending.grad.numel() == 0
        for slot, flat in state.first(state.numel - 1 if step == 1 else held).items():  # the one reads, the other not
            assert torch.equal(flat[:held], wanted.slots[slot][:held]), (step, slot)
        now = state._slots["master"][held:]
        assert torch.equal(now, wanted.slots["master"][held:] if step == 1 else before.slots["master"][held:]), step
        state.change_beside()
        for slot, flat in state.slots.items():
            assert torch.equal(flat, wanted.slots[slot]), (step, slot)
            before.slots[slot].copy_(flat)


@pytest.mark.parametrize("ahead", [False, True])
def test_mirrors_have_their_turn_though_nobody_looks(ranks: RankPool, ahead: bool) -> None:
    """In the forward after a verdict, or in the step in which it comes."""
    config = run_config("float32", dp=4, zero=1)
    config = replace(config, optim=replace(config.optim, post_validation=ahead, clip=0.0))
    assert ranks.run(bodies.mirrors_beside, 4, config) == [True] * 4


def test_what_is_done_is_kept_no_longer() -> None:
    """A gradient's room is needed by the next step."""
    state = FlatState([Piece(0, 0, 0, 8)], torch.float32, torch.device("cpu"))
    grad = torch.ones(8)
    gone, done = weakref.ref(grad), threading.Event()

    def work(grad: Tensor = grad) -> None:
        state._slots["master"][4:] += grad[4:]

    state.change_later(4, work)
    due = state._due
    del grad, work
    assert due is not None and gone() is not None
    threading.Thread(target=lambda: (due[1].result(), done.set())).start()
    assert done.wait(10) and gone() is None  # nobody has read the state
    assert state.slots["master"].tolist() == [0] * 4 + [1] * 4


def test_two_readers_miss_no_change() -> None:
    """One has seen the end of a change, and comes to say so when the next one is due already."""
    state, late = FlatState([Piece(0, 0, 0, 8)], torch.float32, torch.device("cpu")), threading.Event()

    def work() -> None:
        state._slots["master"][4:] += 1

    class Slow(Once):
        def result(self) -> None:
            super().result()
            if threading.current_thread() is other:
                assert late.wait(10)

    state._due = 4, Slow(torch.device("cpu"), work)
    other = threading.Thread(target=state.settle)
    other.start()
    state.settle()
    state.change_later(4, work)
    late.set()
    other.join(10)
    assert state.slots["master"].tolist() == [0] * 4 + [2] * 4


def test_without_another_thread_it_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(task: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("trainsys.parallel.own_stream.run_elsewhere", refuse)
    done = list[int]()
    once = Once(torch.device("cpu"), lambda: done.append(threading.get_ident()))
    once.begin()
    once.result()
    assert done == [threading.get_ident()]


def test_what_is_due_is_done_once_and_its_error_is_told() -> None:
    calls, go = list[int](), threading.Event()

    def work() -> None:
        assert go.wait(10)
        calls.append(1)
        raise RuntimeError("no room")

    state = FlatState([Piece(0, 0, 0, 8)], torch.float32, torch.device("cpu"))
    state.change_later(4, work)
    for thread in (threads := [threading.Thread(target=state.change_beside) for _ in range(4)]):
        thread.start()
    for thread in threads:
        thread.join()
    assert not calls and len(state.first(4)["master"]) == 4
    go.set()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no room"):
            state.settle()
    assert calls == [1]
