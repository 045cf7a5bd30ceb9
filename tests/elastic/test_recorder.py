"""The record of a run, fed by hand: what lands on disk, what resuming keeps, how faults are timed and told."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from trainsys.config import ParallelConfig, RunConfig, TrainConfig, load
from trainsys.elastic.drill import planned_faults, samples_lost_repeated
from trainsys.elastic.messages import Proposal
from trainsys.elastic.record import Change
from trainsys.elastic.recorder import Recorder
from trainsys.parallel.step import Decision, Report
from trainsys.space.build import build_layout
from trainsys.space.layout import Layout

CONFIG = RunConfig(parallel=ParallelConfig(dp=2, pp=2, zero=1), train=TrainConfig(steps=8))


class Page:
    """A console that is not a terminal and remembers its lines."""

    is_terminal = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, *objects: object, **options: object) -> None:
        self.lines.append(" ".join(map(str, objects)))


def layout(*replicas: int) -> Layout:
    parallel = ParallelConfig(pp=2, zero=1, stage_replicas=replicas)
    return build_layout(parallel, (2, 2), range(sum(replicas)), 16384, lambda r: r // 2)


def commit(recorder: Recorder, step: int, where: Layout, epoch: int = 0) -> None:
    size = recorder.config.batch.microbatch_size
    first = step * recorder.config.batch.global_size
    samples = {mb: tuple(range(first + mb * size, first + (mb + 1) * size)) for mb in range(8)}
    proposals = {r: Proposal(epoch, Report(step), (), 2**29 + r) for r in where.ranks}
    proposals[1] = Proposal(epoch, Report(step, samples={mb: samples[mb] for mb in (4, 5, 6, 7)}), (), 2**30)
    proposals[3] = Proposal(epoch, Report(step, samples={mb: samples[mb] for mb in (0, 1, 2, 3)}), (), 2**20)
    recorder.committed(Decision(step, 7.0 - step / 3, 1.0 / (step + 3), 1e-3, 1.0), proposals, epoch, where)


def metrics(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def start(recorder: Recorder, where: Layout) -> None:
    for rank in where.ranks:
        recorder.joined(rank, rank // 2)
    recorder.changed(Change(0, 0, "", None, time.monotonic(), where))


def test_every_committed_step_is_one_line_with_exact_numbers(tmp_path: Path) -> None:
    with Recorder(CONFIG, tmp_path) as recorder:
        start(recorder, layout(2, 2))
        for step in range(3):
            commit(recorder, step, layout(2, 2))
            assert len(metrics(tmp_path)) == step + 1  # flushed at once
    line = metrics(tmp_path)[2]
    assert [m["step"] for m in metrics(tmp_path)] == [0, 1, 2]
    assert float.fromhex(str(line["loss_hex"])) == 7.0 - 2 / 3 == line["loss"]
    assert float.fromhex(str(line["grad_norm_hex"])) == 1.0 / 5
    assert line["memory_gib"] == 1.0  # of the rank that needs most
    assert line["layout"] == "dp2·tp1·pp2 zero1"
    tokens = CONFIG.batch.global_size * CONFIG.batch.seq_len
    assert float(str(line["tokens_per_s"])) == pytest.approx(tokens / float(str(line["step_s"])))
    assert recorder.samples[1] == tuple(range(16, 32))
    assert load([str(tmp_path / "config.yaml")]) == CONFIG
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_loss_that_is_not_finite_is_still_valid_json(tmp_path: Path) -> None:
    with Recorder(CONFIG, tmp_path) as recorder:
        start(recorder, layout(2, 2))
        nan = float("nan")
        recorder.committed(Decision(0, nan, nan, 1e-3, 1.0, True), {0: Proposal(0, Report(0))}, 0, layout(2, 2))
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (line["loss"], line["loss_hex"], line["skipped"]) == (None, "nan", True)


def test_resuming_drops_the_lines_that_are_done_again(tmp_path: Path) -> None:
    with Recorder(CONFIG, tmp_path) as first:
        start(first, layout(2, 2))
        for step in range(5):
            commit(first, step, layout(2, 2))
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')  # the process died while writing
    with Recorder(CONFIG, tmp_path, start_step=3) as second:
        start(second, layout(2, 2))
        commit(second, 3, layout(2, 2))
    assert [m["step"] for m in metrics(tmp_path)] == [0, 1, 2, 3]
    assert (second.next_step, len(second.decisions)) == (4, 1)


def test_a_kill_is_timed_from_the_victims_note_and_told_in_one_sentence(tmp_path: Path) -> None:
    page = Page()
    with Recorder(CONFIG, tmp_path, page) as recorder:
        start(recorder, layout(2, 2))
        commit(recorder, 0, layout(2, 2))
        killed = time.monotonic() - 0.5
        (tmp_path / "faults").mkdir()
        note = {"kind": "kill", "rank": 3, "phase": "backward", "step": 1, "time": killed}
        (tmp_path / "faults" / "3.json").write_text(json.dumps(note))
        recorder.lost(3, "exit", 1)
        assert recorder.faults[0].recover_s is None
        change = Change(1, 1, "rank 3 lost", layout(2, 2), time.monotonic(), layout(2, 1), None, 3 * 2**20, 0.04)
        recorder.changed(change)
        commit(recorder, 1, layout(2, 2), epoch=1)
    fault = recorder.faults[0]
    assert (fault.kind, fault.phase, fault.step, fault.bytes_moved) == ("kill", "backward", 1, 3 * 2**20)
    assert 0.5 <= fault.detect_s <= (fault.recover_s or 0) < 5
    told = [line for line in page.lines if line.startswith("rank 3")]
    assert len(told) == 1
    for part in (
        "lost at step 1 in backward (SIGKILL)",
        "dp 2→1 at stage 1",
        "3.0 MiB moved in 0.04 s",
        "step 1 redone",
    ):
        assert part in told[0]


def test_a_death_without_a_note_counts_from_its_detection(tmp_path: Path) -> None:
    with Recorder(CONFIG, tmp_path) as recorder:
        start(recorder, layout(2, 2))
        recorder.lost(2, "hang", 0)
        error = "group e0/0,2: Read error: Connection reset by peer"  # others noticed before the manager did
        recorder.changed(Change(1, 0, error, layout(2, 2), time.monotonic(), layout(2, 1)))
        commit(recorder, 0, layout(2, 2), 1)
    fault = recorder.faults[0]
    assert (fault.kind, fault.phase, fault.detect_s) == ("hang", "", 0.0)
    assert recorder.changes[-1].reason == "rank 2 lost"
    assert fault.recover_s is not None


def test_a_note_of_an_earlier_life_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "faults").mkdir()
    note = {"kind": "kill", "rank": 2, "phase": "forward", "step": 9, "time": 1.0}
    (tmp_path / "faults" / "2.json").write_text(json.dumps(note))
    with Recorder(CONFIG, tmp_path) as recorder:
        start(recorder, layout(2, 2))
        recorder.lost(2, "exit", 0)
    assert recorder.faults[0].kind == "exit"


def test_a_fresh_rank_is_told_when_it_works(tmp_path: Path) -> None:
    page = Page()
    with Recorder(CONFIG, tmp_path, page) as recorder:
        start(recorder, layout(2, 1))
        recorder.joined(3, 1)
        assert not recorder.joins
        recorder.changed(Change(1, 4, "a rank joins", layout(2, 1), time.monotonic(), layout(2, 2)))
    assert recorder.joins == [(4, 3)]
    assert any(line.startswith("rank 3 works from step 4 on; dp 1→2 at stage 1") for line in page.lines)


def test_a_change_for_two_reasons_is_told_once(tmp_path: Path) -> None:
    page = Page()
    ragged = ParallelConfig(pp=2, zero=1, stage_replicas=(2, 1))
    left = build_layout(ragged, (2, 2), (0, 1, 4), 16384, lambda rank: rank // 2)
    with Recorder(CONFIG, tmp_path, page) as recorder:
        start(recorder, layout(2, 2))
        commit(recorder, 0, layout(2, 2))
        recorder.joined(4, 1)
        recorder.lost(3, "exit", 1)
        recorder.lost(2, "exit", 1)
        recorder.changed(Change(1, 1, "rank 3 lost", layout(2, 2), time.monotonic(), left, None, 2**20))
        commit(recorder, 1, left, epoch=1)
    told = [line for line in page.lines if line.startswith("rank ")]
    assert [line.count("MiB moved") for line in told] == [1, 0, 0], told
    assert all("in the same change" in line for line in told[1:])


def test_who_dies_in_its_first_step_came_before_it_went(tmp_path: Path) -> None:
    page = Page()
    with Recorder(CONFIG, tmp_path, page) as recorder:
        start(recorder, layout(2, 1))
        recorder.joined(3, 1)
        recorder.changed(Change(1, 4, "a rank joins", layout(2, 1), time.monotonic(), layout(2, 2)))
        recorder.lost(3, "exit", 4)
        recorder.changed(Change(2, 4, "rank 3 lost", layout(2, 2), time.monotonic(), layout(2, 1)))
        commit(recorder, 4, layout(2, 1), epoch=2)
    told = [line for line in page.lines if line.startswith("rank 3")]
    assert told[0].startswith("rank 3 works from step 4 on; dp 1→2")
    assert told[1].startswith("rank 3 lost at step 4 (its process ended); dp 2→1")


def test_faults_of_managers_are_known_in_whatever_order_they_strike(tmp_path: Path) -> None:
    """Their notes are numbered by their place in the schedule."""
    with Recorder(CONFIG, tmp_path) as recorder:
        (tmp_path / "faults").mkdir()
        for number, phase in ((1, "open"), (0, "tell")):
            note = {"kind": "kill", "rank": -1, "phase": phase, "step": 5, "time": time.monotonic()}
            (tmp_path / "faults" / f"manager-{number}.json").write_text(json.dumps(note))
            recorder.manager_lost("exit", 5, time.monotonic())
        recorder.manager_lost("exit", 6, time.monotonic())
    assert [(t.kind, t.phase) for t in recorder.takeovers] == [("kill", "open"), ("kill", "tell"), ("exit", "")]


@pytest.mark.parametrize(
    ("samples", "lost", "repeated"),
    [
        ([(0, 1), (2, 3)], 0, 0),
        ([(0, 1), (1, 3)], 1, 1),
        ([(0, 1)], 2, 0),
        ([(0, 1), (2, 3), (2, 3)], 0, 2),
        ([(0, 9)], 3, 1),
    ],
)
def test_lost_and_repeated_samples_are_counted(samples: list[tuple[int, ...]], lost: int, repeated: int) -> None:
    assert samples_lost_repeated(samples, 4) == (lost, repeated)


def test_a_fault_that_can_never_strike_is_refused() -> None:
    config = load(["parallel.dp=4", "faults.schedule=kill@3:0:send"])
    with pytest.raises(ValueError, match=r"kill@3:0:send never strikes.*pp=1"):
        planned_faults(config)
    random = [planned_faults(load(["parallel.dp=4", "faults.kills=3", f"faults.seed={s}"])) for s in range(40)]
    phases = {e.phase for events in random for e in events}
    assert "send" not in phases
    assert len(phases) == 5
