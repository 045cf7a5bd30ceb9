"""What a run wrote about itself is accepted; every way in which it could have gone wrong is seen, and named right."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_kills import train
from tests.tiny import ROOT
from trainsys.cli.main import main
from trainsys.elastic.check import bounds
from trainsys.elastic.check.findings import Findings
from trainsys.elastic.check.registry import check_run, verdicts
from trainsys.elastic.recorder import Recorder

LAYOUT, FAULTS = "dp2·pp2 zero1", "kill@2:2:backward,kill@6:3:reduce"
Lines = dict[str, list[dict[str, Any]]]  # by file, without the attempt's name
Mutation = Callable[[Lines], None]


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of three epochs: two ranks of four are killed, one after the other."""
    folder = tmp_path_factory.mktemp("recorded")
    train(folder, LAYOUT, FAULTS, "elastic.history_every=4")
    return folder


@pytest.fixture
def mutated(
    recorded: Path, undisturbed: Callable[[str], Recorder], tmp_path: Path
) -> Callable[..., dict[str, Findings]]:
    """The check of the recorded run after a mutation of its lines."""

    def check(mutate: Mutation, compare: bool = True) -> dict[str, Findings]:
        lines = copy.deepcopy(read(recorded))
        mutate(lines)
        write(tmp_path, lines)
        return check_run(tmp_path, undisturbed(LAYOUT).run_dir if compare else None)

    return check


def read(folder: Path) -> Lines:
    paths = (folder / "history").glob("*.jsonl")
    return {p.name.rpartition("-")[0]: [json.loads(line) for line in p.read_text().splitlines()] for p in paths}


def write(folder: Path, lines: Lines) -> None:
    shutil.rmtree(folder / "history", ignore_errors=True)
    (folder / "history").mkdir(parents=True)
    for name, rows in lines.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "history" / f"{name}-run.jsonl").write_text(text)


def one(lines: Lines, file: str, event: str, **fields: Any) -> dict[str, Any]:
    """The first line of a kind with these fields."""
    return next(row for row in lines[file] if row["event"] == event and fields.items() <= row.items())


def later(lines: Lines, since_s: float, by_s: float, but: Iterable[str] = ()) -> None:
    """Delay everything after a point of time."""
    for file, rows in lines.items():
        for row in rows if file not in but else ():
            if row["t_s"] > since_s:
                row["t_s"] += by_s


def test_limits_are_those_of_the_manual() -> None:
    text = (ROOT / "docs/faults.md").read_text()
    assert f"files ({bounds.FILES}) and threads ({bounds.THREADS}, each per epoch" in text


# -- a right history -------------------------------------------------------------------------------------------------


def test_a_real_run_is_accepted(recorded: Path, mutated: Callable[..., dict[str, Findings]]) -> None:
    results = mutated(lambda lines: None)
    assert verdicts(results) == dict.fromkeys((f"I{n}" for n in range(8)), True)
    assert results["I1"].checked == {"commits": 12, "verdicts applied": 2 * 12 + 2 + 6}
    stages = {r["epoch"]: len(r["layout"]["stages"]) for r in read(recorded)["manager"] if r["event"] == "opened"}
    commits = [row for row in read(recorded)["manager"] if row["event"] == "committed"]
    assert results["I2"].checked["samples"] == sum(8 * stages[row["epoch"]] for row in commits)
    assert results["I3"].checked["steps compared"] == 12
    assert results["I3"].checked["states compared"] == 2  # the first and the last
    assert (results["I4"].checked["changes"], results["I4"].checked["states hashed"]) == (3, 3)
    assert (results["I5"].checked["epochs"], results["I5"].checked["evictions"]) == (3, 2)
    assert (results["I6"].checked["detections"], results["I7"].checked["losses survived"]) == (2, 2)


def test_what_the_history_is_silent_about_is_not_checked(
    undisturbed: Callable[[str], Recorder], mutated: Callable[..., dict[str, Findings]]
) -> None:
    quiet = verdicts(check_run(undisturbed(LAYOUT).run_dir))
    assert {name for name, holds in quiet.items() if holds is None} == {"I3", "I6"}
    assert {name for name, holds in quiet.items() if holds} == {"I0", "I1", "I2", "I4", "I5", "I7"}

    def unfinished(lines: Lines) -> None:
        for file, rows in lines.items():
            stop = next(i for i, row in enumerate(rows) if row["event"] in ("computed", "committed"))
            lines[file] = rows[:stop]

    begun = verdicts(mutated(unfinished, compare=False))
    assert {name for name, holds in begun.items() if holds is None} == {"I1", "I2", "I3", "I6", "I7"}
    assert False not in begun.values()


def test_a_torn_last_line_is_accepted_and_no_other(
    mutated: Callable[..., dict[str, Findings]], recorded: Path, tmp_path: Path
) -> None:
    mutated(lambda lines: None)
    victim = tmp_path / "history" / "rank-2-run.jsonl"
    victim.write_text(victim.read_text() + '{"event": "computed", "t_s": 1')
    results = check_run(tmp_path)
    assert results["I0"].holds and results["I0"].checked["last lines cut off"] == 1
    rows = victim.read_text().splitlines(keepends=True)
    rows[5] = rows[5][:30] + "\n"
    victim.write_text("".join(rows))
    (violation,) = check_run(tmp_path)["I0"].violations
    assert violation.where == "rank-2-run.jsonl:6"


# -- wrong ones ------------------------------------------------------------------------------------------------------


def shard_never_written(lines: Lines) -> None:
    one(lines, "rank-1", "staged", epoch=1)["owned"].pop()


def piece_of_another_size(lines: Lines) -> None:
    one(lines, "rank-1", "staged", epoch=1)["owned"][3][3] -= 1


def stale_moment(lines: Lines) -> None:
    after = one(lines, "rank-0", "staged", epoch=1)["after"]
    after[next(name for name in after if name.endswith(".exp_avg"))] = "0" * 16


def stale_moment_before_a_later_change(lines: Lines) -> None:
    """Both ends of the second change agree on a moment that is not that of the hash before it."""
    for file in ("rank-0", "rank-1"):
        row = one(lines, file, "hashed", steps=12)
        name = next(n for n in row["after"] if n.endswith(".exp_avg_sq"))
        row["after"][name] = "00000000deadbeef"


def stale_mirror(lines: Lines) -> None:
    one(lines, "rank-1", "hashed", steps=8)["copies"][0][4] = "0" * 16


def step_counter_reset(lines: Lines) -> None:
    one(lines, "rank-0", "staged", epoch=1)["steps"] = 0


def optimizer_counter_reset(lines: Lines) -> None:
    one(lines, "rank-0", "applied", step=5)["steps"] = 1


def wrong_replica_owner(lines: Lines) -> None:
    """Owner and mirror change places, so that every coordinate is still owned once and every hash right."""
    rows = [one(lines, f"rank-{rank}", "staged", epoch=0) for rank in range(4)]
    for row in rows:
        for piece in row["owned"]:
            for other in rows:
                if piece in other["copies"]:
                    row["owned"].remove(piece)
                    row["copies"].append(piece)
                    other["copies"].remove(piece)
                    other["owned"].append(piece)
                    return
    raise AssertionError("nobody keeps a copy")


def two_owners(lines: Lines) -> None:
    row = one(lines, "rank-0", "staged", epoch=0)
    other = one(lines, "rank-2", "staged", epoch=0)
    other["owned"].append(row["owned"][0])


def missing_census(lines: Lines) -> None:
    lines["rank-1"].remove(one(lines, "rank-1", "staged", epoch=1))


def another_layout(lines: Lines) -> None:
    one(lines, "rank-1", "entered", epoch=1)["fingerprint"] = "0" * 16


def sample_repeated(lines: Lines) -> None:
    one(lines, "rank-0", "computed", step=1)["samples"][-1][1] += 1


def sample_lost(lines: Lines) -> None:
    one(lines, "rank-0", "computed", step=1)["samples"][-1][1] -= 1


def sample_of_another_step(lines: Lines) -> None:
    one(lines, "manager", "committed", step=5)["samples"] = [[48, 12]]


def nothing_said_of_a_step(lines: Lines) -> None:
    lines["rank-1"].remove(one(lines, "rank-1", "computed", step=3))


def gradient_scale_changed(lines: Lines) -> None:
    one(lines, "rank-1", "switched", epoch=1)["tokens"] -= 32


def proposed_twice(lines: Lines) -> None:
    row = one(lines, "rank-1", "computed", step=3)
    lines["rank-1"].insert(lines["rank-1"].index(row), row)


def committed_twice(lines: Lines) -> None:
    row = one(lines, "manager", "committed", step=4)
    lines["manager"].insert(lines["manager"].index(row), row)


def commit_lost(lines: Lines) -> None:
    lines["manager"].remove(one(lines, "manager", "committed", step=4))


def applied_without_commit(lines: Lines) -> None:
    """The step that was in flight when rank 2 died, in the epoch that never counted it."""
    row = one(lines, "rank-1", "applied", step=1)
    again = {**one(lines, "rank-1", "applied", step=2), "epoch": 0, "t_s": row["t_s"]}
    lines["rank-1"].insert(lines["rank-1"].index(row) + 1, again)


def applied_twice(lines: Lines) -> None:
    row = one(lines, "rank-1", "applied", step=4)
    lines["rank-1"].insert(lines["rank-1"].index(row), row)


def never_applied(lines: Lines) -> None:
    lines["rank-1"].remove(one(lines, "rank-1", "applied", step=11))


def applied_with_another_norm(lines: Lines) -> None:
    one(lines, "rank-1", "applied", step=4)["grad_norm_hex"] = "0x1.0p+0"


def committed_by_too_few(lines: Lines) -> None:
    one(lines, "manager", "committed", step=4)["ranks"].pop()


def loss_bit_flip(lines: Lines) -> None:
    """Everywhere alike: the parts still add up, and all ranks applied the same."""
    parts = [row for file in lines for row in lines[file] if row["event"] == "computed" and row["step"] == 7]
    row = next(row for row in parts if row["losses"])
    part = next(iter(row["losses"]))
    before, total = float.fromhex(row["losses"][part]), one(lines, "manager", "committed", step=7)["loss_hex"]
    losses = {k: float.fromhex(v) for r in parts for k, v in r["losses"].items()}
    losses[part] = before + 2.0**-20
    row["losses"][part] = losses[part].hex()
    from math import fsum

    for rows in lines.values():
        for line in rows:
            if line.get("loss_hex") == total:
                line["loss_hex"] = fsum(losses.values()).hex()


def loss_not_the_sum(lines: Lines) -> None:
    row = next(r for f in lines for r in lines[f] if r["event"] == "computed" and r["losses"] and r["step"] == 7)
    row["losses"][next(iter(row["losses"]))] = "0x1.0p-4"


def norm_bit_flip(lines: Lines) -> None:
    value = one(lines, "manager", "committed", step=7)["grad_norm_hex"]
    other = (float.fromhex(value) * (1 + 2**-52)).hex()
    for rows in lines.values():
        for line in rows:
            if line.get("grad_norm_hex") == value:
                line["grad_norm_hex"] = other


def epoch_going_backwards(lines: Lines) -> None:
    one(lines, "rank-0", "entered", epoch=2)["epoch"] = 0


def epoch_declared_again(lines: Lines) -> None:
    one(lines, "manager", "called_off", epoch=2)["epoch"] = 1


def works_in_an_abandoned_epoch(lines: Lines) -> None:
    rows = lines["rank-1"]
    at = next(i for i, row in enumerate(rows) if row["event"] == "abandoned")
    rows.insert(at + 1, {**one(lines, "rank-1", "computed", step=1), "step": 2, "t_s": rows[at]["t_s"]})


def switched_without_commit(lines: Lines) -> None:
    rows = lines["rank-1"]
    at = next(i for i, row in enumerate(rows) if row["event"] == "entered" and row["epoch"] == 1)
    rows[at]["epoch"] = 7
    one(lines, "rank-1", "switched", epoch=1)["epoch"] = 7


def zombie_write(lines: Lines) -> None:
    late_s = one(lines, "manager", "lost", rank=2)["t_s"] + 0.5
    row = one(lines, "rank-2", "computed", step=1)
    lines["rank-2"].append({**row, "step": 2, "t_s": late_s})


def zombie_of_another_node(lines: Lines) -> None:
    """Clocks tell nothing here; the epoch does."""
    lines["rank-2"][0]["host"] = "elsewhere"
    row = one(lines, "rank-0", "entered", epoch=1)
    lines["rank-2"].append({**row, "t_s": lines["rank-2"][-1]["t_s"]})


def evicted_rank_returns(lines: Lines) -> None:
    row = one(lines, "manager", "joined", rank=2)
    lost = one(lines, "manager", "lost", rank=2)
    lines["manager"].insert(lines["manager"].index(lost) + 1, {**row, "t_s": lost["t_s"]})


def slow_detection(lines: Lines) -> None:
    later(lines, one(lines, "rank-2", "struck")["t_s"], 6.0)


def silent_for_too_long(lines: Lines) -> None:
    one(lines, "manager", "lost", rank=3).update(cause="hang", silent_s=5.5)


def blocked_until_its_timeout(lines: Lines) -> None:
    later(lines, one(lines, "manager", "called_off", epoch=1)["t_s"], 21.0, ["rank-2"])


# Each of the two epochs may have left one limit's worth behind by then, and so may the epoch that is compared with.
def fd_growth(lines: Lines) -> None:
    one(lines, "rank-0", "entered", epoch=2)["fds"] += 4 * bounds.FILES


def thread_growth(lines: Lines) -> None:
    one(lines, "rank-0", "entered", epoch=2)["threads"] += 4 * bounds.THREADS


def a_file_is_gone(lines: Lines) -> None:
    del lines["rank-3"]


def the_clock_goes_back(lines: Lines) -> None:
    one(lines, "rank-0", "computed", step=7)["t_s"] -= 100


def goes_on_without_a_holder(lines: Lines) -> None:
    one(lines, "manager", "opened", epoch=2)["alive"] = [0]


def gives_up_though_a_copy_lives(lines: Lines) -> None:
    missing = "layers.0.attention.wq.weight[0:8]: no living rank holds it"
    one(lines, "manager", "ended").update(missing=missing, reason=f"state is lost: {missing}")


def gives_up_and_names_nothing(lines: Lines) -> None:
    one(lines, "manager", "ended").update(ranks=[0], missing="something", reason="state is lost: something")


def hangs_after_a_loss(lines: Lines) -> None:
    lost = one(lines, "manager", "lost", rank=3)
    lines["manager"] = lines["manager"][: lines["manager"].index(lost) + 1]
    lines["manager"].append({"event": "ignored", "t_s": lost["t_s"] + 999, "unix_s": 0, "rank": 0, "kind": "quiesced",
                             "epoch": 1})  # fmt: skip
    for rank in range(4):
        rows = lines[f"rank-{rank}"]
        lines[f"rank-{rank}"] = [row for row in rows if row["t_s"] <= lost["t_s"]]


MUTATIONS: list[tuple[Mutation, set[str]]] = [
    (shard_never_written, {"I4"}),
    (piece_of_another_size, {"I4"}),
    (stale_moment, {"I4"}),
    (stale_moment_before_a_later_change, {"I3"}),
    (stale_mirror, {"I4"}),
    (step_counter_reset, {"I4"}),
    (optimizer_counter_reset, {"I4"}),
    (wrong_replica_owner, {"I4"}),
    (two_owners, {"I4"}),
    (missing_census, {"I4"}),
    (another_layout, {"I4"}),
    (sample_repeated, {"I2"}),
    (sample_lost, {"I2"}),
    (sample_of_another_step, {"I2"}),
    (nothing_said_of_a_step, {"I2", "I3"}),
    (gradient_scale_changed, {"I2"}),
    (proposed_twice, {"I2"}),
    (committed_twice, {"I1", "I2"}),
    (commit_lost, {"I1", "I2"}),
    (applied_without_commit, {"I1"}),
    (applied_twice, {"I1"}),
    (never_applied, {"I1"}),
    (applied_with_another_norm, {"I1"}),
    (committed_by_too_few, {"I1"}),
    (loss_bit_flip, {"I3"}),
    (loss_not_the_sum, {"I3"}),
    (norm_bit_flip, {"I3"}),
    (epoch_going_backwards, {"I4", "I5"}),  # nor is the layout that of the epoch
    (epoch_declared_again, {"I5"}),
    (works_in_an_abandoned_epoch, {"I5"}),
    (switched_without_commit, {"I5"}),
    (zombie_write, {"I5"}),
    (zombie_of_another_node, {"I5"}),
    (evicted_rank_returns, {"I5"}),
    (slow_detection, {"I6"}),
    (silent_for_too_long, {"I6"}),
    (blocked_until_its_timeout, {"I6"}),
    (fd_growth, {"I6"}),
    (thread_growth, {"I6"}),
    (a_file_is_gone, {"I0", "I2", "I3", "I4"}),
    (the_clock_goes_back, {"I0"}),
    (goes_on_without_a_holder, {"I7"}),
    (gives_up_though_a_copy_lives, {"I7"}),
    (gives_up_and_names_nothing, {"I7"}),
    (hangs_after_a_loss, {"I7"}),
]


@pytest.mark.parametrize(("mutate", "wrong"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_went_wrong_is_seen_and_named(
    mutate: Mutation, wrong: set[str], mutated: Callable[..., dict[str, Findings]]
) -> None:
    results = mutated(mutate)
    told = {name: [f"{v.where}: {v.text}" for v in found.violations] for name, found in results.items()}
    assert {name for name, found in results.items() if found.holds is False} == wrong, told


def test_a_stage_of_the_last_step_is_compared_without_a_reference_run(
    mutated: Callable[..., dict[str, Findings]],
) -> None:
    """Parts that do not add up need no other run; bits that are wrong everywhere do."""
    assert mutated(loss_not_the_sum, compare=False)["I3"].holds is False
    assert mutated(loss_bit_flip, compare=False)["I3"].holds is None


# -- the verb --------------------------------------------------------------------------------------------------------


def test_the_verb_names_file_and_line(
    recorded: Path, undisturbed: Callable[[str], Recorder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = str(undisturbed(LAYOUT).run_dir)
    assert main(["check", str(recorded), "--against", reference]) == 0
    assert "VIOLATED" not in capsys.readouterr().out
    lines = copy.deepcopy(read(recorded))
    committed_twice(lines)
    write(tmp_path, lines)
    assert main(["check", str(tmp_path), "--against", reference]) == 1
    number = 2 + lines["manager"].index(one(lines, "manager", "committed", step=4))
    assert f"I1  manager-run.jsonl:{number}: step 4 is committed again" in capsys.readouterr().out
    assert main(["check", str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["invariants"] == {**dict.fromkeys((f"I{n}" for n in range(8)), True), "I1": False, "I2": False,
                                  "I3": None}  # fmt: skip
    assert told["violations"]["I1"][0]["where"] == f"manager-run.jsonl:{number}"
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert "elastic.history=true" in capsys.readouterr().err


def test_a_check_needs_no_torch(recorded: Path) -> None:
    code = f"import sys; from trainsys.cli.main import main; code = main(['check', {str(recorded)!r}]);"
    code += "sys.exit(code or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_a_floor_lets_losses_differ_by_so_much(
    mutated: Callable[..., dict[str, Findings]], tmp_path: Path, undisturbed: Callable[[str], Recorder]
) -> None:
    mutated(loss_bit_flip)
    reference = undisturbed(LAYOUT).run_dir
    assert check_run(tmp_path, reference, floor=1e-5)["I3"].holds
    assert check_run(tmp_path, reference, floor=1e-9)["I3"].holds is False
