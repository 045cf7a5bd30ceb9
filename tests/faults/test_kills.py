"""Ranks die in every phase, on several layouts: no step and no sample lost or repeated, the loss bit-equal."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.tiny import STEPS, command, tiny
from trainsys.config import RunConfig, load
from trainsys.elastic.agent import run_local
from trainsys.elastic.check.registry import check_run
from trainsys.elastic.drill import by_step, samples_lost_repeated
from trainsys.elastic.faults import CHANGE_PHASES, STEP_PHASES, parse_faults
from trainsys.elastic.messages import Proposal
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.recorder import Recorder
from trainsys.parallel.step import Decision
from trainsys.space.layout import Layout

LAYOUTS = {
    "dp2·pp2 zero1": "parallel.dp=2 parallel.pp=2 parallel.zero=1",
    "dp4 zero0": "parallel.dp=4 parallel.pp=1 parallel.zero=0",
    "dp4 zero2": "parallel.dp=4 parallel.pp=1 parallel.zero=2",
    "dp4 zero3": "parallel.dp=4 parallel.pp=1 parallel.zero=3",
    "dp2·pp2 zero3 recompute": "parallel.dp=2 parallel.pp=2 parallel.zero=3 parallel.recompute=full model.tied=true",
    "pp4": "parallel.dp=1 parallel.pp=4 parallel.zero=0",
    "dp2·tp2 zero1": "parallel.dp=2 parallel.tp=2 parallel.pp=1 parallel.zero=1",
    "dp3·pp2 zero1": "parallel.dp=3 parallel.pp=2 parallel.zero=1 cluster.ranks_per_node=3 batch.global_size=9",
    "gpt2, tied, dropout, bfloat16": "model.family=gpt2 model.tied=true model.dropout=0.1 train.dtype=bfloat16",
    "dp2·pp2·vp2 zero2": "parallel.pp=2 parallel.dp=2 parallel.vp=2 parallel.schedule=interleaved parallel.zero=2",
    "dp4·ep2 zero1": "parallel.dp=4 parallel.pp=1 parallel.ep=2 parallel.zero=1 model.family=mixtral "
    "model.num_experts=4",
    "dp2·cp2 zero1": "parallel.dp=2 parallel.cp=2 parallel.pp=1 parallel.zero=1 batch.microbatch_size=2",
    "cp4": "parallel.dp=1 parallel.pp=1 parallel.cp=4 parallel.zero=0 batch.microbatch_size=2",
    "dp2·pp2 zero1 placed": "parallel.dp=2 parallel.pp=2 parallel.zero=1 parallel.devices=[3,0,2,1]",
    "pp4, vocabulary on all": "parallel.dp=1 parallel.pp=4 parallel.zero=0 parallel.vocabulary=two_barriers "
    "model.vocab_parts=4",
    "zbv zero1": "parallel.pp=2 parallel.dp=2 parallel.vp=2 parallel.schedule=zbv parallel.zero=1 "
    "parallel.offload=scheduled",
}
KILLS = [
    ("pp4", "kill@4:1:send"),
    ("dp2·pp2 zero1", "kill@6:1:snapshot"),
    ("dp4 zero2", "kill@5:1:backward"),
    ("dp4 zero3", "kill@5:1:forward"),
    ("dp2·pp2 zero3 recompute", "kill@4:3:backward"),
    ("dp2·pp2 zero1", "kill@3:2:backward,kill@3:3:plan"),
    ("dp4 zero0", "kill@4:0:reduce,kill@4:2:connect"),
    ("pp4", "join@2,kill@2:3:transfer"),
    ("dp2·tp2 zero1", "kill@5:1:forward,kill@5:0:verify"),
    ("dp3·pp2 zero1", "kill@4:0:backward,kill@4:4:commit"),
    ("dp4 zero0", "kill@0:1:forward"),
    ("dp2·pp2 zero1", "kill@11:0:optimizer"),
    ("dp4 zero0", "kill@4:1:reduce,kill@4:2:reduce"),
    ("gpt2, tied, dropout, bfloat16", "kill@4:0:snapshot"),
    ("pp4, vocabulary on all", "kill@4:1:backward"),
    ("dp2·pp2·vp2 zero2", "kill@5:2:backward"),
    ("dp4·ep2 zero1", "kill@5:1:backward,join@6"),
    ("dp2·cp2 zero1", "kill@5:2:backward"),
    ("dp2·pp2 zero1 placed", "kill@5:3:backward"),
    ("zbv zero1", "kill@5:2:backward,join@6"),
]


class Patient(Recorder):
    """Slows the run down until the ranks that shall join have joined, and looks around after each step."""

    awaited = 0
    watch: Callable[[], None] = staticmethod(lambda: None)

    def committed(self, decision: Decision, proposals: Mapping[int, Proposal], epoch: int, layout: Layout) -> None:
        super().committed(decision, proposals, epoch, layout)
        self.watch()
        arrived = len(self.joins) + len(self._standing_by) + sum(f.step >= 0 and f.rank >= 4 for f in self.faults)
        if decision.step >= 3 and arrived < self.awaited:
            time.sleep(1.0)


def train(folder: Path, layout: str, faults: str = "", *overrides: str) -> Patient:
    config = load(tiny(folder, *LAYOUTS[layout].split(), *overrides))
    with Patient(config, config.run_dir) as recorder:
        recorder.awaited = faults.count("join")
        run_local(config, recorder, parse_faults(faults, config.cluster.nodes * config.cluster.ranks_per_node, STEPS))
    return recorder


def check(recorder: Recorder, reference: Recorder, config: RunConfig) -> None:
    """Nothing lost, nothing repeated, the same bits, and a history that says so."""
    steps = config.train.steps
    ours, theirs = by_step(recorder.decisions), by_step(reference.decisions)
    assert [d.step for d in recorder.decisions] == list(range(steps))
    assert samples_lost_repeated(recorder.samples, steps * config.batch.global_size) == (0, 0)
    assert recorder.samples == reference.samples
    assert [ours[s].loss.hex() for s in range(steps)] == [theirs[s].loss.hex() for s in range(steps)]
    assert [ours[s].grad_norm.hex() for s in range(steps)] == [theirs[s].grad_norm.hex() for s in range(steps)]
    assert len({d.loss for d in recorder.decisions}) == steps  # it did train
    assert [error for _, _, error in recorder.saves] == [""]  # and saved at the end
    results = check_run(recorder.run_dir, reference.run_dir)
    assert {name: found.violations for name, found in results.items() if found.violations} == {}
    assert {name for name, found in results.items() if found.holds is None} <= {"I6"}  # where nobody was lost


def test_every_phase_is_among_the_kills() -> None:
    struck = {event.phase for _, faults in KILLS for event in parse_faults(faults, 6, STEPS) if event.kind == "kill"}
    assert struck == {*STEP_PHASES, *CHANGE_PHASES}


@pytest.mark.parametrize(("layout", "faults"), KILLS, ids=str)
def test_a_kill_costs_nothing_but_time(
    layout: str, faults: str, undisturbed: Callable[[str], Recorder], tmp_path: Path
) -> None:
    recorder = train(tmp_path, layout, faults)
    check(recorder, undisturbed(layout), recorder.config)
    planned = [(e.kind, e.rank, e.phase) for e in parse_faults(faults, 6, STEPS) if e.kind != "join"]
    assert sorted((f.kind, f.rank, f.phase) for f in recorder.faults) == sorted(planned)
    assert recorder.changes[-1].after is not None
    assert not {f.rank for f in recorder.faults} & set(recorder.changes[-1].after.ranks)


def test_those_who_are_left_share_the_sequence(undisturbed: Callable[[str], Recorder], tmp_path: Path) -> None:
    """Other degrees of cp round otherwise: the loss is that of whole sequences but for rounding."""
    recorder, whole = (
        train(tmp_path, "cp4", "kill@3:2:backward,kill@5:0:reduce,kill@7:3:forward"),
        undisturbed("dp4 zero0"),
    )
    assert [change.after.cp for change in recorder.changes if change.after] == [4, 2, 2, 1]
    assert recorder.samples == whole.samples
    for ours, theirs in zip(recorder.decisions, whole.decisions, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)


@pytest.mark.alone
def test_a_frozen_rank_is_found_fenced_and_replaced(undisturbed: Callable[[str], Recorder], tmp_path: Path) -> None:
    limit_s, slack_s = 2.5, 10.0
    frozen: list[int] = []

    class Watching(Patient):
        @staticmethod
        def watch() -> None:
            frozen.append(len(_frozen()))

    config = load(tiny(tmp_path, f"elastic.heartbeat_limit_s={limit_s}"))
    with Watching(config, config.run_dir) as recorder:
        run_local(config, recorder, parse_faults("stop@5:1:backward", 4, STEPS))
    check(recorder, undisturbed("dp2·pp2 zero1"), config)
    (fault,) = recorder.faults
    assert (fault.kind, fault.rank, fault.step) == ("stop", 1, 5)
    assert limit_s * 0.8 < fault.detect_s < limit_s + slack_s
    assert fault.recover_s is not None and fault.recover_s < limit_s + slack_s
    assert frozen == [0] * STEPS  # when the redone step is committed, the frozen process is gone


def test_the_layout_grows_back_when_a_rank_joins(undisturbed: Callable[[str], Recorder], tmp_path: Path) -> None:
    recorder = train(tmp_path, "dp2·pp2 zero1", "kill@2:2:backward,join@3")
    check(recorder, undisturbed("dp2·pp2 zero1"), recorder.config)
    first, smaller, last = (change.after for change in recorder.changes)
    assert first is not None and smaller is not None and last is not None
    assert str(last) == str(first) == "dp2·tp1·pp2 zero1"
    assert [s.spans for s in last.stages] == [s.spans for s in first.stages]
    assert set(smaller.ranks) <= {0, 1, 3}
    assert set(last.ranks) == {0, 1, 3, 4}


def test_a_rank_that_dies_while_it_joins_is_not_missed(undisturbed: Callable[[str], Recorder], tmp_path: Path) -> None:
    recorder = train(tmp_path, "dp2·pp2 zero1", "kill@2:2:backward,join@3,kill@3:4:transfer")
    check(recorder, undisturbed("dp2·pp2 zero1"), recorder.config)
    assert [fault.rank for fault in recorder.faults] == [2, 4]
    assert recorder.changes[-1].after is not None
    assert set(recorder.changes[-1].after.ranks) <= {0, 1, 3}


def test_a_spare_takes_the_place_of_a_dead_rank(undisturbed: Callable[[str], Recorder], tmp_path: Path) -> None:
    config = load(tiny(tmp_path, "elastic.spare_delay_s=0"))
    with Patient(config, config.run_dir) as recorder:
        recorder.awaited = 1
        run_local(config, recorder, parse_faults("kill@2:3:reduce", 4, STEPS))
    check(recorder, undisturbed("dp2·pp2 zero1"), config)
    assert recorder.changes[-1].after is not None
    assert set(recorder.changes[-1].after.ranks) == {0, 1, 2, 4}


# -- the end of the road ---------------------------------------------------------------------------------------------


def test_a_rank_and_its_mirror(tmp_path: Path) -> None:
    mirror = _mirrors(tmp_path)[0][0]
    with command("drill", *tiny(tmp_path, f"faults.schedule=kill@4:0:forward,kill@4:{mirror}:plan")) as running:
        code, _, err = running.finish()
        assert running.gone_within(20), running.living()
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith(f"trainsys: state is lost with ranks 0, {mirror}: ") and "no living rank holds it" in line
    assert any(name in line for name in ("tok_embeddings", "layers."))
    assert "there is no checkpoint yet to resume from" in line
    found = check_run(tmp_path)
    assert {name for name, one in found.items() if one.holds is not True} == {"I3"}
    assert found["I7"].checked["ends for lost state"] == 1


def test_fewer_ranks_than_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ElasticError, match=r"needs ≥ 4 ranks, 3 alive; lower elastic\.min_ranks"):
        train(tmp_path, "dp2·pp2 zero1", "kill@2:3:reduce", "elastic.min_ranks=4")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    events = [json.loads(line)["event"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert events[-2:] == ["lost", "end"]


def test_less_than_one_tp_team(tmp_path: Path) -> None:
    with pytest.raises(ElasticError, match=r"smaller parallel\.tp"):
        train(tmp_path, "dp2·tp2 zero1", "kill@2:1:forward,kill@4:2:forward,kill@6:3:forward")


def _mirrors(folder: Path) -> dict[int, tuple[int, ...]]:
    from trainsys.space.build import build_layout

    config = load(tiny(folder))
    return build_layout(config.parallel, (2, 2), range(4), config.elastic.chunk, lambda r: r // 2).peers_of


def _frozen() -> list[int]:
    """Stopped processes of this session."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] == "T" and int(fields[3]) == os.getsid(0):
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found
