"""`trainsys simulate`: numbers, schedules beside each other, pictures, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trainsys.cli.main import main
from trainsys.cli.prepare import emulated
from trainsys.config import load
from trainsys.planner.alternatives import alternatives, schedule_names
from trainsys.planner.timeline import timeline
from trainsys.schedule import GENERATORS

PLAN = [
    "configs/model/llama-small.yaml", "configs/cluster/local-4.yaml", "cluster.device.tflops=0.5",
    "cluster.shared_cores=false", "model.num_layers=8", "parallel.pp=4", "batch.global_size=8",
    "batch.microbatch_size=1",
]  # fmt: skip


def test_all_schedules_sorted_with_what_each_needs() -> None:
    config = load(PLAN)
    able, unable = alternatives(config, schedule_names("all"))
    assert {one.name for one in able} == set(GENERATORS)
    assert unable == {}
    steps = [one.timeline.run.step_s for one in able]
    assert steps == sorted(steps)
    by_name = {one.label: one for one in able}
    assert by_name["zbv vp2"].needs == "parallel.schedule=zbv parallel.vp=2"
    assert all(by_name[name].timeline.run.bubble < by_name["1f1b"].timeline.run.bubble for name in ("zbv vp2", "zb1p"))
    assert by_name["vmin vp2"].peak_microbatches < by_name["zbv vp2"].peak_microbatches <= 4
    for one in (by_name["zbv vp2"], by_name["interleaved vp2"]):
        alone = timeline(load([*PLAN, *one.needs.split()]))
        assert (alone.schedule, alone.run.step_s) == (one.timeline.schedule, one.timeline.run.step_s)


def test_json_is_a_list_with_the_keys_of_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["simulate", *PLAN, "parallel.schedule=gpipe", "schedule=1f1b", "--json", "--out", str(tmp_path)]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found.keys() >= {"schedule", "step_s", "ideal_s", "bubble", "peak_activations", "actions", "needs", "vp"}
    assert (found["schedule"], found["peak_activations"]) == ("1f1b", [4, 3, 2, 1])
    assert found["peak_gib"][0] > found["peak_gib"][2]


def test_one_page_holds_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["simulate", *PLAN, "schedule=zbv,1f1b,dualpipev", "model.num_layers=7", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "cannot run zbv: parallel.pp*vp=8 runs of layers but model.num_layers=7" in shown
    assert "cannot run dualpipev" in shown
    page = (tmp_path / "schedules.html").read_text()
    assert page.count("data:image/png;base64,") == 2  # the comparison, and 1f1b
    assert not re.search(r"<script|https?://|src=\"(?!data:)", page)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "schedules.html",
        "schedules.png",
        "timeline-1f1b-vp1.png",
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["schedule=foo"], ["schedule=foo is unknown", "schedule=all", "zbv"]),
        (["schedule="], ["schedule= is unknown"]),
        (["schedule=zbv", "model.num_layers=4"], ["parallel.pp*vp=8", "model.num_layers=4"]),
        (["schedule=zbv", "schedule=1f1b"], ["schedule= is given twice"]),
        (["schedule=1f1b", "--out", "/proc/x"], ["--out=/proc/x", "cannot be written"]),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["simulate", *PLAN, f"run_dir={tmp_path}/run", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []


def test_emulation_is_refused_where_it_would_mislead(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds checkpoints of a training; set another run_dir"):
        emulated(load([*PLAN, "train.emulate=true", f"run_dir={tmp_path}"]))
    with pytest.raises(ValueError, match="leave one out"):
        emulated(load([*PLAN, "train.emulate=true", "train.init_from=hf:x", f"run_dir={tmp_path}/other"]))
