"""torch's CSV, in and out, without torch; tests/parallel/test_torch_peer.py runs the files on both engines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainsys.schedule import GENERATORS, Kind, Problem, Routes, Schedule, build, generate, with_offload, with_recompute
from trainsys.schedule.actions import COUNTERPART
from trainsys.schedule.torch_csv import export_csv, import_csv
from trainsys.space.runs import FOLDED

ONE_BY_ONE = "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"


def built(name: str, m: int = 8, replicas: tuple[int, ...] = (1, 1, 1, 1)) -> Schedule:
    vp = 2 if name in FOLDED or name == "interleaved" else 1
    return build(name, Routes.balanced(m, replicas, vp, name in FOLDED), vp)


def computed(schedule: Schedule) -> list[list[str]]:
    return [[str(action) for action in lane if action.is_compute] for lane in schedule.lanes]


@pytest.mark.parametrize("name", GENERATORS)
def test_what_is_written_is_read_back(name: str) -> None:
    schedule = built(name)
    plain = import_csv(export_csv(schedule), schedule.name)
    assert plain == schedule
    whole = import_csv(export_csv(schedule, with_comms=True), schedule.name)
    assert computed(whole) == computed(schedule)
    assert {a for lane in whole.lanes for a in lane} == {a for lane in schedule.lanes for a in lane}


@pytest.mark.parametrize("name", GENERATORS)
def test_messages_between_two_ranks_arrive_in_the_order_in_which_they_are_sent(name: str) -> None:
    """torch knows no tags. Even ranks that wait for each message to be taken come to the end."""
    schedule = import_csv(export_csv(built(name), with_comms=True), name)
    sent: dict[tuple[int, int], list[str]] = {}
    taken: dict[tuple[int, int], list[str]] = {}
    for lane, actions in enumerate(schedule.lanes):
        for action in actions:
            if action.kind in COUNTERPART:
                peer, other = schedule.peer(action), schedule.counterpart(action)
                assert peer is not None and other is not None
                if action.kind in (Kind.SEND_F, Kind.SEND_B):
                    sent.setdefault((lane, peer), []).append(str(other))
                else:
                    taken.setdefault((peer, lane), []).append(str(action))
    assert sent == taken and sent
    left = [[a for a in actions if a.kind in COUNTERPART] for actions in schedule.lanes]
    while any(left):
        heads = {lane: actions[0] for lane, actions in enumerate(left) if actions}
        meeting = [lane for lane, a in heads.items() if schedule.counterpart(a) == heads.get(schedule.peer(a))]
        assert meeting, heads
        for lane in meeting:
            left[lane].pop(0)


def test_the_engine_of_torch_is_told_about_weights_and_gradients() -> None:
    rows = [row.split(",") for row in export_csv(built("zbv", m=3), with_comms=True).splitlines()]
    for row in rows:
        stages = {cell.rstrip("UNSHARD") for cell in row if cell.endswith("UNSHARD")}
        assert len(stages) == 2
        for stage in stages:
            own = [cell for cell in row if re.match(rf"{stage}[A-Z]", cell)]
            assert own[0] == f"{stage}UNSHARD"
            assert own[-2:] == [f"{stage}REDUCE_GRAD", f"{stage}RESHARD"]


def test_one_of_several_replicas_is_written_with_microbatches_from_zero() -> None:
    several = built("1f1b", m=9, replicas=(3, 3))
    assert export_csv(several) == export_csv(built("1f1b", m=3, replicas=(1, 1)))
    with pytest.raises(ValueError, match=r"stage 1 \[0, 1, 2\]; torch's .* leave parallel.stage_replicas empty"):
        export_csv(built("1f1b", m=9, replicas=(2, 3)))


def test_what_torch_has_not_is_refused() -> None:
    plain = built("1f1b")
    with pytest.raises(ValueError, match=r"1f1b: torch has no R as in 0R0; set parallel.recompute=none or full"):
        export_csv(with_recompute(plain, range(3)))
    with pytest.raises(ValueError, match=r"no OFFLOAD as in 0OFFLOAD0; set parallel.offload=none"):
        export_csv(with_offload(plain, range(3), 1))
    skipping = Schedule("s", Routes(((0, 0), (0, -1)), ((0, 1), (0,))), ((), ()), {(0, 0): 0, (1, 0): 1})
    with pytest.raises(ValueError, match="microbatches skip stages"):
        export_csv(skipping)


def test_pairs_idle_cells_and_the_engines_own_actions_are_read() -> None:
    text = ' 0F0,,0F1 ,0UNSHARD,"0B0",0B1,0REDUCE_GRAD,\r\n,1F0,(1F1;1B0)OVERLAP_F_B,1B1,1RESHARD\r\n\r\n'
    assert computed(import_csv(text, "x")) == [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1F1", "1B0", "1B1"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.csv is empty; write one row of actions per rank"),
        ("0F0,0Q0\n", "x.csv, row 1, column 2, cell '0Q0': '0Q0' is not an action"),
        ("0F0,0B0\n1F0,,1R0,1B0\n", "x.csv, row 2, column 3, cell '1R0': torch has no R; set parallel.recompute"),
        ("0F0,0S0,0B0\n", "x.csv, row 1, column 2, cell '0S0': torch has no S; set parallel.vocabulary instead"),
        ("0F0,(0F1;0B0)BOTH\n", r"row 1, column 2, cell '(0F1;0B0)BOTH': write (<action>;<action>)OVERLAP_F_B"),
        ("0F0,0B0\n\n1F0,1B0\n", "x.csv, row 2: no action; every rank has a stage"),
        ("0F0,0B0\n0F1,0B1\n", "x.csv, row 2, column 1, cell '0F1': stage 0 is on row 1; one rank runs all"),
        ("0F0,0B0\n2F0,2B0\n", "x.csv: stage 1 is missing, the highest is 2"),
        ("0F0,0B0,0F99999999,0B99999999\n", "x.csv: microbatch 1 is missing, the highest is 99999999"),
        ("0F0,0B0\n1F0,1B0,2F0,2B0\n", "x.csv: 3 stages on 2 ranks; every rank has equally many"),
        (
            "1F0,1B0\n0F0,0B0\n",
            "x.csv: the stages lie neither in a loop nor in a V: stage 0 is on row 2, in a loop it is on row 1; "
            "stage 0 is on row 2, in a V on row 1",
        ),
        (ONE_BY_ONE.replace("0F1,0B0", "0B0,0F1", 1).replace("1F0,1B0,1F1", "1F0,1F1,1B0"), "x.csv: cyclic wait: "),
        (ONE_BY_ONE.replace("0F0,0F1", "0F1"), "x.csv: lane 0: 0F0 is missing"),
        (ONE_BY_ONE.replace("1F0,1B0", "1B0,1F0"), "x.csv: lane 1: 1B0 comes before 1F0"),
        ("0F0,0SEND_F0,0RECV_B0,0B0\n1F0,1B0,1SEND_B0\n", "x.csv: lane 1: 1F0 has no 1RECV_F0"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        import_csv(text, "x.csv")
    assert str(caught.value).startswith("x.csv")
    assert "\n" not in str(caught.value)


def test_every_replica_runs_the_files_rows_with_its_own_microbatches(tmp_path: Path) -> None:
    path = str(tmp_path / "v.csv")
    Path(path).write_text(export_csv(built("zbv", m=5, replicas=(1, 1))))
    routes = Routes.balanced(15, [3, 3], 2, folded=True)
    got = generate(path, Problem(routes, vp=2, folded=True))
    assert got.placement == built("zbv", m=15, replicas=(3, 3)).placement
    for rank in range(2):
        first, *others = (computed(got)[got.placement[rank, replica]] for replica in range(3))
        for replica, lane in enumerate(others, start=1):
            shifted = [re.sub(r"\d+$", lambda mb: str(int(mb[0]) + 5 * replica), cell) for cell in first]
            assert lane == shifted


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem(Routes.balanced(8, [1] * 2, 2, True), 2, True), "has 4 ranks but parallel.pp=2; set parallel.pp=4"),
        (Problem(Routes.balanced(8, [1] * 4)), "has 2 stages per rank but parallel.vp=1; set parallel.vp=2"),
        (Problem(Routes.balanced(8, [1] * 4, 2), 2), "has its stages in a V; set parallel.placement=v"),
        (Problem(Routes.balanced(8, [1, 2, 1, 1], 2, True), 2, True), r"they have [1, 2, 1, 1]; leave parallel.stage"),
        (
            Problem(Routes.balanced(8, [2] * 4, 2, True), 2, True),
            "has 8 microbatches but a replica of parallel.dp=2 has 4; set batch.global_size=16 · batch.microbatch_size",
        ),
        (
            Problem(Routes.balanced(8, [1] * 4, 2, True), 2, True, cap=2),
            "microbatches, more than parallel.activations=2",
        ),
    ],
)
def test_a_file_for_another_layout_names_both_numbers_and_the_knob(
    tmp_path_factory: pytest.TempPathFactory, problem: Problem, message: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "v.csv"
    path.write_text(export_csv(built("zbv")))
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        generate(str(path), problem)
    assert message in str(caught.value)


def test_a_loop_where_a_v_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "loop.csv"
    path.write_text(export_csv(built("interleaved")))
    with pytest.raises(ValueError, match=r"has its stages in a loop; set parallel.placement=loop"):
        generate(str(path), Problem(Routes.balanced(8, [1] * 4, 2, True), 2, True))
    with pytest.raises(ValueError, match=r"parallel.schedule=.*none.csv cannot be read: No such file or directory"):
        generate(str(tmp_path / "none.csv"), Problem(Routes.balanced(8, [1])))
