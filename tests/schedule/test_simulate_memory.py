"""Recompute and offload: where the passes put them, what they cost, and what they free."""

import pytest

from trainsys.schedule import Action, Costs, Footprint, Problem, Routes, Schedule, build, simulate, verify
from trainsys.schedule.comms import insert_comms
from trainsys.schedule.generators import gpipe, one_f_one_b
from trainsys.schedule.residency import with_offload, with_recompute


def alone(text: str, microbatches: int) -> Schedule:
    lane = tuple(map(Action.parse, text.split()))
    return Schedule("alone", Routes.balanced(microbatches, [1]), (lane,), {(0, 0): 0})


def text(schedule: Schedule, lane: int = 0) -> str:
    return " ".join(map(str, schedule.lanes[lane]))


KEPT = Footprint(kept=[10.0], until_w=[4.0], input=[1.0])


def test_passes_stand_where_they_should() -> None:
    plain = alone("0F0 0F1 0F2 0B0 0I1 0B2 0W1", 3)
    assert text(with_recompute(plain)) == "0F0 0F1 0F2 0R0 0B0 0R1 0I1 0R2 0B2 0W1"
    assert text(with_offload(plain)) == (
        "0F0 0OFFLOAD0 0F1 0OFFLOAD1 0RELOAD0 0F2 0OFFLOAD2 0RELOAD1 0B0 0RELOAD2 0I1 0B2 0W1"
    )
    assert text(with_offload(plain, ahead=0)).endswith("0OFFLOAD2 0RELOAD0 0B0 0RELOAD1 0I1 0RELOAD2 0B2 0W1")
    both = with_offload(with_recompute(plain), ahead=1)
    assert text(both).endswith("0RELOAD0 0F2 0OFFLOAD2 0R0 0RELOAD1 0B0 0R1 0RELOAD2 0I1 0R2 0B2 0W1")
    for schedule in (with_recompute(plain), with_offload(plain), both):
        verify(schedule)
        assert with_recompute(with_recompute(schedule)) == with_recompute(schedule)
        assert with_offload(with_offload(schedule)) == with_offload(schedule)


@pytest.mark.parametrize("ahead", [0, 1, 3, 99])
@pytest.mark.parametrize("stages", [None, [0], [1, 2]])
def test_passes_and_comms_in_any_order_verify(ahead: int, stages: list[int] | None) -> None:
    routes = Routes.balanced(6, [1, 2, 1])
    for generator in (gpipe, one_f_one_b):
        bare = generator.generate(Problem(routes))
        before = insert_comms(with_offload(with_recompute(bare, stages), stages, ahead))
        after = with_recompute(with_offload(insert_comms(bare), stages, ahead), stages)
        count = 18 if stages is None else 6 * len(stages)
        for schedule in (before, after):
            verify(schedule)
            kinds = [a.kind for lane in schedule.lanes for a in lane]
            assert kinds.count("R") == kinds.count("OFFLOAD") == kinds.count("RELOAD") == count


def test_unknown_stages_and_late_reloads_are_value_errors() -> None:
    schedule = alone("0F0 0B0", 1)
    for change in (with_recompute, with_offload):
        with pytest.raises(ValueError, match=r"stages \[1\] are not in the schedule, which has 1"):
            change(schedule, [0, 1])
    with pytest.raises(ValueError, match="ahead=-1 compute actions"):
        with_offload(schedule, ahead=-1)


def test_recompute_costs_a_forward_unless_said_otherwise() -> None:
    schedule = with_recompute(build("1f1b", Routes.balanced(8, [1] * 4)))
    verify(schedule)
    run = simulate(schedule, Costs([1.0] * 4, [2.0] * 4))
    assert run.busy_s == (8 * 4.0,) * 4
    assert run.step_s == (8 + 3) * 4.0 - 3  # R of the stages above has run while the gradient was on its way
    assert run.peak_activations == (4, 3, 2, 1)
    assert simulate(schedule, Costs([1.0] * 4, [2.0] * 4, r_s=[0.5] * 4)).busy_s == (8 * 3.5,) * 4


def test_copies_queue_by_direction_and_block_nothing_but_their_use() -> None:
    schedule = alone("0F0 0OFFLOAD0 0F1 0OFFLOAD1 0F2 0RELOAD0 0RELOAD1 0B2 0B0 0B1", 3)
    verify(schedule)
    run = simulate(schedule, Costs([1.0], [2.0], offload_s=[2.5], reload_s=[4.0]))
    spans = {str(e.action): (e.start_s, e.end_s) for e in run.events}
    assert spans["0F2"] == (2.0, 3.0)
    assert spans["0OFFLOAD0"] == (1.0, 3.5)
    assert spans["0OFFLOAD1"] == (3.5, 6.0)  # behind the first
    assert spans["0RELOAD0"] == (3.5, 7.5)  # not before it has left
    assert spans["0RELOAD1"] == (7.5, 11.5)
    assert spans["0B2"] == (3.0, 5.0)
    assert spans["0B0"] == (7.5, 9.5)
    assert spans["0B1"] == (11.5, 13.5)
    assert run.step_s == 13.5
    assert run.busy_s == (9.0,)
    assert simulate(schedule, Costs([1.0], [2.0])).step_s == 9.0  # copies are free unless said otherwise


def test_a_recompute_waits_for_its_input() -> None:
    schedule = alone("0F0 0OFFLOAD0 0RELOAD0 0R0 0B0", 1)
    verify(schedule)
    run = simulate(schedule, Costs([1.0], [2.0], offload_s=[1.0], reload_s=[1.0]))
    assert [(str(e.action), e.start_s) for e in run.events][-2:] == [("0R0", 3.0), ("0B0", 4.0)]


@pytest.mark.parametrize(
    ("actions", "curve"),
    [
        ("0F0 0F1 0B0 0B1", [(0, 10), (1, 20), (4, 10), (6, 0)]),
        ("0F0 0I0 0F1 0W0 0B1", [(0, 10), (2, 4), (2, 14), (4, 10), (6, 0)]),
        ("0F0 0F1 0R0 0B0 0R1 0B1", [(0, 1), (1, 2), (2, 11), (5, 1), (5, 10), (8, 0)]),
        ("0F0 0OFFLOAD0 0F1 0B1 0RELOAD0 0B0", [(0, 10), (1, 20), (1.5, 11), (4, 1), (4, 10), (6.25, 0)]),
        ("0F0 0OFFLOAD0 0F1 0B1 0RELOAD0 0R0 0B0", [(0, 1), (1, 11), (4, 1), (4.25, 10), (7.25, 0)]),
    ],
)
def test_bytes_come_and_go_by_the_rules(actions: str, curve: list[tuple[float, float]]) -> None:
    schedule = alone(actions, 2)
    verify(schedule)
    run = simulate(schedule, Costs([1.0], [2.0], offload_s=[0.5], reload_s=[0.25]))
    assert run.memory(0, KEPT) == [(0, 0), *curve]
    assert run.peak_bytes(0, KEPT) == max(alive for _, alive in curve)


def test_recompute_and_offload_lower_the_peak_of_a_pipeline() -> None:
    footprint = Footprint([8.0] * 4, [3.0] * 4, [1.0] * 4)
    costs = Costs([1.0] * 4, [2.0] * 4, offload_s=[0.5] * 4, reload_s=[0.5] * 4)
    plain = build("1f1b", Routes.balanced(12, [1] * 4))
    peaks = [
        [run.peak_bytes(lane, footprint) for lane in range(4)]
        for run in (simulate(s, costs) for s in (plain, with_recompute(plain), with_offload(plain)))
    ]
    assert peaks[0] == [32.0, 24.0, 16.0, 8.0]
    assert peaks[1] == [3 + 8.0, 2 + 8.0, 1 + 8.0, 8.0]
    assert peaks[2][0] < 0.8 * peaks[0][0]


def test_bad_footprints_are_value_errors() -> None:
    with pytest.raises(ValueError, match="1 numbers of until_w for 2 of kept"):
        Footprint([1.0, 1.0], [1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="input of stage 0 is 2, not within 0 and kept 1"):
        Footprint([1.0], [1.0], [2.0])
    with pytest.raises(ValueError, match="costs of OFFLOAD: 2 numbers for 1 stages"):
        simulate(alone("0F0 0B0", 1), Costs([1.0], [1.0], offload_s=[1.0, 1.0]))
