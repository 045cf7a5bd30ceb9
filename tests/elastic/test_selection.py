"""Whom the next layout is for: spares stand by until one is missing, and what is foreseen is what would be chosen."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import replace
from itertools import combinations
from math import prod
from pathlib import Path

import pytest

from tests.tiny import eventually, tiny
from trainsys.config import ParallelConfig, RunConfig, load
from trainsys.elastic import foresight
from trainsys.elastic.agenda import Agenda
from trainsys.elastic.fingerprints import code_print, config_print
from trainsys.elastic.foresight import Foresight
from trainsys.elastic.member import mismatch
from trainsys.elastic.messages import Hello
from trainsys.elastic.selection import Selection
from trainsys.elastic.situation import Situation
from trainsys.models.geometry import split_layers
from trainsys.planner.choose import Question, answer, choose, question
from trainsys.planner.device import rate
from trainsys.space.layout import Layout

NODES = {rank: rank // 2 for rank in range(4)}


def standing(folder: Path, *overrides: str) -> tuple[RunConfig, ParallelConfig, Layout]:
    """A run on its first layout."""
    config = load(tiny(folder, "parallel.stage_layers=[2,2]", *overrides))
    return config, *choose(config, None, config.parallel, NODES, rate(config.cluster, 4))


def test_a_spare_takes_the_place_of_the_lost(tmp_path: Path) -> None:
    config, parallel, layout = standing(tmp_path, "elastic.spares=1")
    selection = Selection(config, 4, rate(config.cluster, 4))
    nodes = {**NODES, 4: 0}
    selection.fresh = {4}
    assert not selection.grows(layout, parallel, nodes)
    assert set(selection.choose(layout, parallel, nodes)[1].ranks) == {0, 1, 2, 3}
    lost = {rank: node for rank, node in nodes.items() if rank != 2}
    assert set(selection.choose(layout, parallel, lost)[1].ranks) == {0, 1, 3, 4}
    selection.leaving = {1}
    assert set(selection.choose(layout, parallel, nodes)[1].ranks) == {0, 2, 3, 4}


@pytest.mark.parametrize("spares", [0, 1])
def test_losses_are_foreseen(spares: int, tmp_path: Path) -> None:
    config, parallel, layout = standing(tmp_path, f"elastic.spares={spares}")
    speed = rate(config.cluster, 4)
    with closing(Foresight(config, speed, beside=True)) as seen:
        selection = Selection(config, 4, speed, seen)
        for nodes in (NODES, {**NODES, 4: 1}):  # as it stands, and when a rank has joined
            if nodes == NODES:
                selection.foresee(layout, parallel, nodes)
            else:
                selection.fresh = {4}
                selection.grows(layout, parallel, nodes)
            for lost in ({0}, {3}, {0, 1}, {1, 3}):  # a rank; a node or another pair
                left = Situation(layout, parallel, nodes, frozenset(), 4).staying(lost, spares)
                asked = question(config.cluster, layout, parallel, left)
                assert eventually(lambda asked=asked: seen.read() or asked in seen._known, 20), (nodes, lost)
                assert seen.answer(asked) == answer(config, asked, speed)


def test_a_frozen_process_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "_SILENT_S", 0.5)
    config, parallel, layout = standing(tmp_path)
    speed = rate(config.cluster, 4)
    with closing(Foresight(config, speed, beside=True)) as seen:
        os.kill(seen._process.pid, signal.SIGSTOP)
        selection = Selection(config, 4, speed, seen)
        nodes = {**NODES, 4: 0, 5: 1}
        selection.fresh = {4, 5}
        assert not selection.grows(layout, parallel, nodes)  # the answer is waited for
        assert eventually(lambda: selection.grows(layout, parallel, nodes), 10)
        assert eventually(lambda: not seen._process.is_alive(), 10)


def test_only_the_last_two_situations_count(tmp_path: Path) -> None:
    config, parallel, layout = standing(tmp_path)
    agenda = Agenda(config, rate(config.cluster, 4))
    for fresh in range(4):
        nodes = {**NODES, **{4 + rank: rank % 2 for rank in range(fresh)}}
        stands = Situation(layout, parallel, nodes, frozenset(), 4)
        agenda.consider(stands)
        if not fresh:
            agenda.ask(asked := question(config.cluster, layout, parallel, NODES))
    assert {item.of for item in agenda._waiting} == {-1, 3, 4}
    first = agenda.next()
    assert first is not None
    assert first[:2] == (asked, answer(config, asked, rate(config.cluster, 4)))
    while agenda:
        agenda.next()
    agenda.consider(stands)
    assert not agenda  # it is no news


def test_while_a_layout_is_made_ready_the_old_one_stands(tmp_path: Path) -> None:
    """A rank joins; another dies before the layout for it stands: what it asks was not to wait behind the new one's."""
    config, parallel, layout = standing(tmp_path)
    speed, more = rate(config.cluster, 4), {**NODES, 4: 0}
    agenda = Agenda(config, speed)
    agenda.consider(Situation(layout, parallel, more, frozenset(), 4))
    wanted = {
        question(config.cluster, layout, parallel, {rank: node for rank, node in more.items() if rank not in lost})
        for lost in ([0], [1], [2], [3], [0, 1, 4], [2, 3])
    }
    then = choose(config, layout, parallel, more, speed)
    agenda.consider(Situation(then[1], then[0], more, frozenset(), 4))
    for _ in range(len(wanted)):
        answered = agenda.next()
        assert answered is not None
        wanted.discard(answered[0])
    assert not wanted


def test_a_loss_right_after_another_is_foreseen(tmp_path: Path) -> None:
    config, parallel, layout = standing(tmp_path)
    speed = rate(config.cluster, 4)
    with closing(Foresight(config, speed, beside=True)) as seen:
        Selection(config, 4, speed, seen).foresee(layout, parallel, NODES)
        for first in NODES:
            nodes = {rank: node for rank, node in NODES.items() if rank != first}
            parallel_then, layout_then = choose(config, layout, parallel, nodes, speed)
            for second in nodes:
                left = {rank: node for rank, node in nodes.items() if rank != second}
                asked = question(config.cluster, layout_then, parallel_then, left)
                assert eventually(lambda asked=asked: seen.read() or asked in seen._known, 20)


@pytest.mark.parametrize("shape", ["dp=4 pp=3 tp=2", "dp=5 pp=4 tp=1", "dp=3 pp=2 tp=1"])
@pytest.mark.parametrize("node", [lambda r: r // 6, lambda r: r % 3, lambda r: min(r // 2, 2)])
def test_losses_that_look_alike_ask_the_same(shape: str, node: Callable[[int], int], tmp_path: Path) -> None:
    degrees = [f"parallel.{degree}" for degree in shape.split()]
    config = load(tiny(tmp_path, *degrees, "cluster.nodes=4", "model.num_layers=6", "batch.global_size=60"))
    layers = split_layers(config.model.num_layers, config.parallel.pp)
    nodes = {rank: node(rank) for rank in range(prod(int(degree[3:]) for degree in shape.split()))}
    parallel, layout = choose(
        config, None, replace(config.parallel, stage_layers=tuple(layers)), nodes, rate(config.cluster, len(nodes))
    )
    stands = Situation(layout, parallel, nodes, frozenset(), len(nodes))
    every = [{rank} for rank in nodes] + [{r for r in nodes if nodes[r] == n} for n in set(nodes.values())]

    def asked(losses: Iterable[Collection[int]]) -> set[Question]:
        left = [stands.staying(lost, spares=0) for lost in losses]
        return {question(config.cluster, layout, parallel, living) for living in left if living}

    assert asked(stands.losses(pairs=False)) == asked(every)
    assert asked(stands.losses(pairs=True)) == asked([*every, *map(set, combinations(nodes, 2))])
    assert stands.small or len(stands.losses(pairs=True)) < 100 < len(every) ** 2


def test_other_code_or_another_config_is_refused(tmp_path: Path) -> None:
    config = load(tiny(tmp_path))
    ours = code_print(), config_print(config)
    assert mismatch(Hello(4, 1, 0, ours), ours) == ""
    assert config_print(load(tiny(tmp_path / "elsewhere"))) == ours[1]
    other = config_print(load(tiny(tmp_path, "optim.lr=0.5")))
    assert mismatch(Hello(4, 1, 0, (ours[0], other)), ours) == (
        f"has another config: {other}, the run's is {ours[1]}; start it from the same files"
    )
