"""Predicted step time, bubble and activations against the closed formulas and hand-made cases."""

import time

import pytest

from trainsys.schedule import Action, Costs, Kind, Routes, Schedule, ScheduleError, build, simulate


def actions(text: str) -> tuple[Action, ...]:
    return tuple(map(Action.parse, text.split()))


def uniform(name: str, stages: int, microbatches: int) -> Schedule:
    return build(name, Routes.balanced(microbatches, [1] * stages))


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_step_time_and_peaks_follow_the_closed_formulas(name: str) -> None:
    f_s, b_s = 1.0, 2.0
    for stages in range(1, 9):
        for m in range(1, 25):
            run = simulate(uniform(name, stages, m), Costs([f_s] * stages, [b_s] * stages))
            assert run.step_s == (m + stages - 1) * (f_s + b_s)
            assert run.bubble == pytest.approx((stages - 1) / (m + stages - 1))
            peaks = [m] * stages if name == "gpipe" else [min(m, stages - s) for s in range(stages)]
            assert list(run.peak_activations) == peaks
            assert run.busy_s == (m * (f_s + b_s),) * stages


@pytest.mark.parametrize(("stages", "m", "step_s"), [(4, 8, 33.0), (4, 16, 57.0), (8, 24, 93.0)])
def test_golden_numbers_of_the_zero_bubble_comparison(stages: int, m: int, step_s: float) -> None:
    """B is two units, in the field's usual comparison (tF = tI = tW = 1)."""
    for name in ("gpipe", "1f1b"):
        assert simulate(uniform(name, stages, m), Costs([1] * stages, [2] * stages)).step_s == step_s


def test_latency_is_paid_once_per_hop_on_the_way_down_and_up() -> None:
    run = simulate(uniform("gpipe", 3, 1), Costs([1.0] * 3, [2.0] * 3, send_s=0.25))
    assert run.step_s == 3 * 3.0 + 4 * 0.25
    by_link = simulate(uniform("gpipe", 3, 1), Costs([1.0] * 3, [2.0] * 3, send_s=lambda src, dst: src + 10.0 * dst))
    assert by_link.step_s == 3 * 3.0 + (10 + 21 + 12 + 1)


def test_a_slow_link_is_the_bottleneck_because_its_transfers_queue() -> None:
    m, send_s = 16, 5.0
    run = simulate(uniform("gpipe", 2, m), Costs([1.0] * 2, [1.0] * 2, send_s=send_s))
    assert run.step_s == pytest.approx(2 * (m * send_s + 1.0 + 1.0))


def test_action_overhead_is_paid_by_every_action_of_the_lane() -> None:
    schedule = uniform("1f1b", 1, 4)
    assert simulate(schedule, Costs([1.0], [2.0], action_s=0.5)).step_s == 4 * 3.0 + 8 * 0.5


def test_a_slow_stage_sets_the_pace() -> None:
    m = 32
    run = simulate(uniform("1f1b", 4, m), Costs([1, 3, 1, 1], [2, 6, 2, 2]))
    assert run.step_s == m * 9 + 1 + 2  # stage 1 never pauses between the first way in and the last way out


def test_the_activation_curve_reaches_the_peak_and_ends_empty() -> None:
    run = simulate(uniform("1f1b", 4, 8), Costs([1.0] * 4, [2.0] * 4))
    for lane, peak in enumerate(run.peak_activations):
        curve = run.activations(lane)
        assert max(alive for _, alive in curve) == peak
        assert curve[-1][1] == 0
        assert [t for t, _ in curve] == sorted(t for t, _ in curve)


def test_compute_events_of_a_lane_never_overlap() -> None:
    run = simulate(build("1f1b", Routes.balanced(12, [2, 3, 1])), Costs([1, 2, 0.5], [2, 4, 1], send_s=0.3))
    free = [0.0] * 6
    for event in run.events:
        if event.action.is_compute:
            assert event.start_s >= free[event.lane]
            free[event.lane] = event.end_s


def test_split_backward_counts_an_activation_until_w() -> None:
    lane = actions("0F0 0F1 0I0 0I1 0W0 0W1")
    run = simulate(Schedule("zb", Routes.balanced(2, [1]), (lane,), {(0, 0): 0}), Costs([1.0], [3.0], i_s=[1.0]))
    assert run.peak_activations == (2,)
    assert run.step_s == 2 * (1 + 1 + 1.5)


def test_stages_on_one_lane_pass_tensors_without_a_transfer() -> None:
    lane = actions("0F0 1F0 1B0 0B0")
    schedule = Schedule("folded", Routes.balanced(1, [1, 1]), (lane,), {(0, 0): 0, (1, 0): 0})
    assert simulate(schedule, Costs([1.0] * 2, [2.0] * 2, send_s=9.0)).step_s == 6.0


def test_a_deadlock_names_lanes_and_actions() -> None:
    routes = Routes.balanced(2, [1, 1])
    lanes = (
        actions("0F0 0SEND_F0 0RECV_B0 0B0 0F1 0SEND_F1 0RECV_B1 0B1"),
        actions("1RECV_F0 1F0 1RECV_F1 1F1 1B0 1SEND_B0 1B1 1SEND_B1"),
    )
    with pytest.raises(ScheduleError, match=r"cyclic wait: lane 0 waits at 0B0 .* lane 1; lane 1 waits at 1F1"):
        simulate(Schedule("bad", routes, lanes, {(0, 0): 0, (1, 0): 1}), Costs([1.0] * 2, [1.0] * 2))


def test_wrong_number_of_costs_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="1 numbers for 2 stages"):
        simulate(uniform("gpipe", 2, 2), Costs([1.0], [1.0, 1.0]))


def test_time_is_linear_in_the_number_of_actions() -> None:
    def seconds(m: int) -> float:
        schedule = uniform("1f1b", 16, m)
        best = 9.0
        for _ in range(3):
            start = time.process_time()
            simulate(schedule, Costs([1.0] * 16, [2.0] * 16))
            best = min(best, time.process_time() - start)
        return best

    assert seconds(256) < 4 * 4 * seconds(64)  # 4 times the actions; the second factor is for noise


def test_sends_are_events_of_the_sender() -> None:
    run = simulate(uniform("gpipe", 2, 3), Costs([1.0] * 2, [1.0] * 2, send_s=0.1))
    sends = [event for event in run.events if not event.action.is_compute]
    assert {(e.lane, e.action.kind) for e in sends} == {(0, Kind.SEND_F), (1, Kind.SEND_B)}
    assert len(sends) == 6
    assert all(e.end_s - e.start_s == pytest.approx(0.1) for e in sends)
