"""A slice of the campaign: the kinds of faults that no other test has, each with the runs it must not disturb."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import storm
from benchmarks.storm import LAYOUTS, SEEDS, Case, References, config_of, read_seeds, run_case, storm_of
from tests.tiny import tiny
from trainsys.cli.main import main
from trainsys.config import load
from trainsys.elastic.check.record import read
from trainsys.elastic.drill_end import drill_to_the_end
from trainsys.elastic.epochs_picture import draw_epochs
from trainsys.elastic.goodput import ACTIVITIES, goodput

pytestmark = pytest.mark.timeout(120)


def test_a_slice_of_the_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = "wake,cut,oneway,slow,flip,full"
    monkeypatch.setattr(storm, "LONGEST", 7)
    case = Case(0, "dp2·pp2 zero1", 26, 7, kinds)
    row = run_case(case, References(tmp_path), tmp_path / "storm")
    assert row["good"], row
    assert (row["steps_lost"], row["samples_lost"], row["samples_repeated"]) == (0, 0, 0)
    assert row["bit_equal_loss"]
    assert row["invariants"] == dict.fromkeys((f"I{n}" for n in range(8)), True)
    assert row["kinds"].keys() == {*kinds.split(","), "kill"}
    assert [zombie["ended"] for zombie in row["zombies"]] == ["by itself"]
    (attempt,) = read(tmp_path / "storm").attempts
    (zombie,) = [rank for rank, line in attempt.of_ranks("struck") if line["kind"] == "wake"]
    assert attempt.ranks[zombie][-1].event == "struck"  # it woke up, and wrote nothing more
    shares = goodput(tmp_path / "storm")
    assert shares.keys() == ACTIVITIES.keys()
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-9)
    assert all(share >= 0 for share in shares.values())
    assert min(shares["useful"], shares["detection"], shares["change"], shares["checkpoint"]) > 0
    draw_epochs(tmp_path / "storm", tmp_path / "epochs.png")
    assert (tmp_path / "epochs.png").stat().st_size > 10_000


def test_a_flipped_bit_in_a_mirror_is_found_before_it_is_used(tmp_path: Path) -> None:
    result = drill_to_the_end(load(tiny(tmp_path, "faults.schedule=flip@2:2,join@3", "faults.expect=found")))
    assert result["passed"], result
    assert result["ended"].startswith("census: rank 2 holds another ")


def test_the_last_holder(tmp_path: Path) -> None:
    faults = "faults.schedule=kill@2:0:forward,kill@2:2:plan"
    result = drill_to_the_end(load(tiny(tmp_path, faults, "faults.expect=lost")))
    assert result["passed"], result
    assert "no living rank holds it" in result["ended"]


def test_the_seed_list_makes_a_thousand_faults(tmp_path: Path) -> None:
    configs = {layout: config_of(layout, tmp_path) for layout in LAYOUTS}
    planned = [storm_of(case, configs[case.layout]) for case in read_seeds(SEEDS)]
    assert sum(event.kind != "join" for events in planned for event in events) >= 1000


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("5,lost,a\n", ":2: expected the event add or remove, found 'lost'"),
        ("0,add,a\n0,add,b\n9,remove,a\n", " adds 2 nodes at time 0, but the run begins with 4 ranks; set "
         "cluster.nodes and cluster.ranks_per_node, or add as many"),
    ],
)  # fmt: skip
def test_a_trace_that_cannot_be_ends_with_two(
    lines: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spot.csv").write_text(f"time_s,event,node\n{lines}")
    assert main(["drill", *tiny(tmp_path / "run", f"faults.trace={tmp_path}/spot.csv")]) == 2
    assert capsys.readouterr().err == f"trainsys: {tmp_path}/spot.csv{said}\n"
    assert not (tmp_path / "run").exists()
