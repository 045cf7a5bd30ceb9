"""Fault schedules as text: read in the order of their steps, refused when they cannot happen; storms and traces."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from trainsys.config import ClusterConfig, ElasticConfig, FaultsConfig, RunConfig, TrainConfig
from trainsys.elastic import drill_end
from trainsys.elastic.drill_plan import nemeses_of, planned_faults
from trainsys.elastic.faults import NEMESES, FaultEvent, Injector, parse_faults
from trainsys.elastic.faults.driver import Driver, left_strokes
from trainsys.elastic.faults.event import IN_A_CHANGE
from trainsys.elastic.faults.notes import read_notes
from trainsys.elastic.faults.poisson import Stroke, poisson
from trainsys.elastic.faults.random_storm import random_storm
from trainsys.elastic.faults.trace import read_trace
from trainsys.elastic.launchers import LAUNCHERS


def test_a_join_counts_from_its_step_on() -> None:
    events = parse_faults("kill@8:4,join@2", 4, 20)
    assert [str(e) for e in events] == ["join@2", "kill@8:4:forward"]


@pytest.mark.parametrize(
    "text",
    [
        "kill@1:2:backward", "stop@1:0:plan", "wake@3:1:reduce", "drain@3:1:forward", "join@4", "cut@5:1+3:send",
        "oneway@5:3+1:transfer", "slow@6:2:x5", "slow@6:2:x50:3", "flip@7:1:forward", "full@8", "kill@9:manager:switch",
        "stop@9:manager:collect",
    ],
)  # fmt: skip
def test_every_kind_prints_as_it_is_written(text: str) -> None:
    (event,) = parse_faults(text, 4, 20)
    assert str(event) == text
    assert event.kind in NEMESES
    assert event.of_manager == ("manager" in text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("join@10,kill@5:4", "ranks are 0 to 3 then"),
        ("kill@5:1,kill@8:1:send", "strikes rank 1 a second time"),
        ("wake@5:1,slow@8:1:x5", "strikes rank 1 a second time"),
        ("kill@5:0,kill@5:1,kill@5:2,kill@5:3", "leaves none of 4 ranks"),
        ("kill@50:0", "train.steps=20"),
        ("kill@5:0:lunch", "names no phase"),
        ("kill@5:manager:forward", "phases are collect, tell, open, switch, call"),
        ("kill@5", "is not kill@STEP:RANK"),
        ("melt@5:1", "is not kill@STEP:RANK"),
        ("cut@5:1", r"is not cut@STEP:RANK\+PEER"),
        ("cut@5:1+1", "names rank 1 twice"),
        ("cut@5:1+4", "ranks are 0 to 3 then"),
        ("slow@5:1:x1", "makes nothing slower"),
        ("slow@5:1:x99999999999999999999", "would not end; write x1000 or less"),
        ("drain@5:manager", "is not drain@STEP:RANK"),
        ("kill@5:manager:forward", "names no phase of the manager's; phases are collect"),
        ("kill@5:", r"is not kill@STEP:RANK\|manager"),
        ("slow@3:1:x2:0", "lasts 0 steps"),
        ("full@3,full@3", "full@3 is there twice"),
        ("cut@3:0+1,cut@3:1+0", r"cut@3:1\+0:forward is there twice"),
        (" , ", "has an empty item"),
        ("kill@5:1,,kill@6:2", "has an empty item"),
    ],
)
def test_what_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_faults(text, 4, 20)


@pytest.mark.parametrize("seed", range(20))
def test_a_storm_is_a_schedule(seed: int) -> None:
    """It parses back, has every kind, and is the same for the same seed."""
    storm = random_storm(seed, 30, 4, 200, 2)
    text = ",".join(map(str, storm))
    assert parse_faults(text, 4, 200) == storm
    assert storm == random_storm(seed, 30, 4, 200, 2)
    assert {event.kind for event in storm} == set(NEMESES)
    lost = [event for event in storm if NEMESES[event.kind].fatal and not event.of_manager]
    assert 0 <= len([event for event in storm if event.kind == "join"]) - len(lost) <= 2  # as many stay as there were
    called = {event.step for event in storm if event.of_manager and event.phase == "call"}
    assert called <= {event.step for event in storm if event.kind == "kill" and not event.of_manager}


def test_the_first_fresh_rank_has_the_number_after_the_spares() -> None:
    cluster, elastic = ClusterConfig(nodes=1, ranks_per_node=4), ElasticConfig(spares=1)
    config = replace(config_with(schedule="join@2,kill@5:5"), cluster=cluster, elastic=elastic)
    assert [event.rank for event in planned_faults(config)] == [-1, 5]
    with pytest.raises(ValueError, match="ranks are 0 to 4 then"):
        planned_faults(replace(config, faults=FaultsConfig(schedule="kill@2:5,join@2")))


@pytest.mark.parametrize("seed", range(5))
def test_a_storm_strikes_who_works_in_the_place_of_the_lost(seed: int) -> None:
    """Spares first, in their order, and then the fresh ranks; nobody who stands by, and no rank that will not be."""
    storm, spares = random_storm(seed, 30, 4, 200, 2, kinds=("kill", "join"), share=0.0, spares=2), 2
    assert parse_faults(",".join(map(str, storm)), 4 + spares, 200) == storm
    working, standing_by, fresh = set(range(4)), list(range(4, 4 + spares)), 4 + spares
    for event in storm:
        while len(standing_by) > spares or (standing_by and len(working) < 4):
            working.add(standing_by.pop(0))
        if event.kind == "join":
            standing_by.append(fresh)
            fresh += 1
        elif not event.of_manager:
            assert event.rank in working, (event, working)
            working.remove(event.rank)


def test_a_rank_waits_for_the_fresh_one_and_not_for_a_spare(tmp_path: Path) -> None:
    """The spare, rank 4, is there; the one that joins, rank 5, comes a little later."""
    folder, waited = tmp_path / "faults", list[int]()
    victim: Any = SimpleNamespace(config=RunConfig(run_dir=str(tmp_path), elastic=ElasticConfig(spares=1)), rank=0)
    events = parse_faults("join@1,kill@3:1", 5, 20)
    injector = Injector(events, 0, folder, victim=victim, world_size=4, waited=lambda _, step: waited.append(step))
    folder.mkdir()
    (folder / "4.pid").write_text("1")
    timer = threading.Timer(0.1, lambda: (folder / "5.pid").write_text("1"))
    timer.start()
    injector.step = 2
    injector.at("forward")
    assert (folder / "5.pid").exists()
    assert waited == [2]
    timer.join()


@pytest.mark.parametrize(("rank", "works_from", "struck"), [(4, 6, 6), (4, 8, 8), (4, 3, 6), (1, 8, None)])
def test_a_fresh_rank_is_struck_in_its_first_step_if_it_came_late(
    rank: int, works_from: int, struck: int | None, tmp_path: Path
) -> None:
    schedule = "join@2,kill@6:4,kill@6:1"
    config = replace(RunConfig(run_dir=str(tmp_path)), faults=FaultsConfig(schedule=schedule))
    told = list[int]()

    def strike(event: FaultEvent, step: int) -> None:
        told.append(step)
        raise KeyboardInterrupt  # in place of the signal

    (tmp_path / "4.pid").write_text("1")
    victim: Any = SimpleNamespace(config=config, rank=rank)
    injector = Injector(parse_faults(schedule, 4, 20), rank, tmp_path, strike, victim, world_size=4)
    with suppress(KeyboardInterrupt):
        for injector.step in range(works_from, 12):
            injector.at("forward")
    assert told == ([] if struck is None else [struck])


def test_a_storm_needs_room() -> None:
    with pytest.raises(ValueError, match=r"set faults\.rejoin_after to 1 or more and train\.steps=186"):
        random_storm(0, 30, 4, 100, 2)
    with pytest.raises(ValueError, match="needs 4 ranks or more"):
        random_storm(0, 3, 2, 100, 2)


def config_with(launcher: Literal["local", "ray"] = "local", **faults: object) -> RunConfig:
    return RunConfig(faults=FaultsConfig(**faults), train=TrainConfig(steps=100), launcher=launcher)  # type: ignore[arg-type]


def test_one_source_of_faults_at_a_time() -> None:
    with pytest.raises(ValueError, match=r"faults\.schedule and faults\.mtbf_s are both set"):
        planned_faults(config_with(schedule="kill@3:0", mtbf_s=2.0))
    with pytest.raises(ValueError, match="'lunch' is no kind of fault; there are all, kill"):
        nemeses_of(config_with(nemeses="kill,lunch"))


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"mtbf_s": 2.0, "expect": "lost"}, r"faults\.expect=lost is for faults by step, not faults\.mtbf_s"),
        ({"trace": "spot.csv", "expect": "found"}, r"faults\.expect=found is for faults by step, not faults\.trace"),
        ({"mtbf_s": 2.0, "nemeses": "stop"}, r"faults\.mtbf_s only kills; faults\.nemeses=stop is for faults\.kills"),
        ({"kills": 2, "nemeses": "all,kill"}, r"faults\.nemeses=all,kill has all beside others; write all, or"),
        ({"schedule": "wake@3:1", "launcher": "ray"}, "wake@3:1:forward needs all ranks on this machine; set launcher"),
        ({"schedule": "kill@2:0,cut@3:1+2", "launcher": "ray"}, r"cut@3:1\+2:forward needs all ranks on this machine"),
        ({"kills": 2, "nemeses": "oneway", "launcher": "ray"}, "oneway needs all ranks on this machine; set launcher"),
    ],
)
def test_faults_that_nobody_would_carry_out_are_refused(faults: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        planned_faults(config_with(**faults))


def test_all_kinds_are_those_that_the_launcher_can() -> None:
    here, there = (set(nemeses_of(config_with(launcher, nemeses="all"))) for launcher in LAUNCHERS)
    assert here - there == {"wake", "cut", "oneway"}


def test_a_drill_that_must_end_and_is_stopped_has_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill_end, "launch", lambda *_: None)  # returns early, as after SIGINT
    config = config_with(schedule="kill@3:0", expect="lost")
    with pytest.raises(KeyboardInterrupt):
        drill_end.drill_to_the_end(replace(config, run_dir=str(tmp_path)))
    assert not (tmp_path / "report.json").exists()


# -- by the clock ----------------------------------------------------------------------------------------------------


def test_the_gaps_of_a_poisson_process() -> None:
    strokes = list(islice(poisson(5.0, 3), 2000))
    gaps = [b.time_s - a.time_s for a, b in pairwise(strokes)]
    assert mean(gaps) == pytest.approx(5.0, rel=0.1)
    assert mean(gap > 5.0 for gap in gaps) == pytest.approx(0.368, abs=0.04)  # e⁻¹: no memory
    assert strokes == list(islice(poisson(5.0, 3), 2000))
    assert strokes[0] != next(poisson(5.0, 4))


def test_a_trace_is_read_faster_than_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "spot.csv"
    path.write_text("time_s,event,node\n0,add,a\n0,add,b\n120,remove,b\n\n180.5,add,c\n")
    strokes = read_trace(path, 60)
    assert [(s.time_s, s.event, s.node) for s in strokes] == [
        (0, "add", "a"), (0, "add", "b"), (2, "remove", "b"), (pytest.approx(3.00833, rel=1e-4), "add", "c"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: expected the header time_s,event,node, found ''"),
        ("time_s,event,node\n", ":2: expected at least one event"),
        ("time_s,event,node\n1,add\n", ":2: expected time_s,event,node, found 2 fields"),
        ("time_s,event,node\nsoon,add,a\n", ":2: expected a time in seconds that is not negative, found 'soon'"),
        ("time_s,event,node\nnan,add,a\n", ":2: expected a time in seconds"),
        ("time_s,event,node\n5,add,a\n4,add,b\n", ":3: expected a time of 5 s or later, found 4"),
        ("time_s,event,node\n5,lost,a\n", ":2: expected the event add or remove, found 'lost'"),
        ("time_s,event,node\n5,add,\n", ":2: expected the name of a node"),
        ("time_s,event,node\n5,add,a\n6,add,a\n", ":3: expected a node that is not there, a was added before"),
        ("time_s,event,node\n0,add,a\n6,remove,b\n", ":3: expected a node that is there, b was not added before"),
    ],
)
def test_a_malformed_trace_is_told_by_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "spot.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected") as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}{said}")


def test_strokes_that_a_run_does_not_reach_are_left(tmp_path: Path) -> None:
    strokes = [Stroke(0.0, "add", "a"), Stroke(0.0, "remove", "a"), Stroke(60.0, "add", "b")]
    driver = Driver(strokes, tmp_path, lambda: 1, dict, lambda node: None, 1)
    driver.start()
    time.sleep(0.1)
    driver.close()
    assert left_strokes(tmp_path) == ["remove a at 0 s", "add b at 60 s"]
    random = Driver(poisson(1e6, 0), tmp_path / "random", lambda: 1, dict, lambda node: None, 1)
    random.start()
    random.close()
    assert left_strokes(tmp_path / "random") == []


def test_nodes_that_come_at_time_0_are_ranks_of_their_own(tmp_path: Path) -> None:
    """Though one of them goes before the next comes: both removals find the rank of their node."""
    strokes = [
        Stroke(0.0, "add", "a"), Stroke(0.0, "add", "b"), Stroke(0.0, "remove", "a"), Stroke(0.0, "add", "c"),
        Stroke(0.0, "remove", "b"), Stroke(0.0, "remove", "c"), Stroke(60.0, "add", "d"),
    ]  # fmt: skip
    for rank in range(4):
        (tmp_path / f"{rank}.pid").write_text("1")
    gone = 2**22 + 1  # no such process: nobody is signalled
    driver = Driver(strokes, tmp_path, lambda: 1, lambda: dict.fromkeys(range(4), gone), lambda node: None, 1)
    driver.start()
    time.sleep(0.3)
    driver.close()
    assert [note["rank"] for note in read_notes(tmp_path)] == [0, 1, 2]
    assert left_strokes(tmp_path) == ["add d at 60 s"]


def test_a_trace_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"faults\.trace=/nowhere/spot\.csv cannot be read: No such file"):
        read_trace("/nowhere/spot.csv")


def test_a_fault_waits_for_a_change_no_longer_than_it_says() -> None:
    (event,) = parse_faults("kill@3:1:transfer:4", 4, 20)
    assert str(event) == "kill@3:1:transfer:4"
    assert [step for step in range(10) if event.awaits(step)] == [3, 4, 5, 6]
    (patient,) = parse_faults("kill@3:1:transfer", 4, 20)
    assert [step for step in range(10) if patient.awaits(step)] == [3, 4, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match=r"'kill@3:1:forward:4' waits for no change; leave out :4"):
        parse_faults("kill@3:1:forward:4", 4, 20)


def test_a_storms_fault_in_a_change_waits_for_the_drain_before_it_alone() -> None:
    events = random_storm(5, 16, 4, 160, 1, share=1.0)
    waiting = [event for event in events if event.phase in IN_A_CHANGE]
    drains = {event.step for event in events if event.kind == "drain"}
    assert waiting
    assert all(event.step in drains and event.steps for event in waiting)
