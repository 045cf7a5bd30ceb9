"""Why not that layout: the answer holds against the checks and costs that it speaks of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainsys.config import RunConfig
from trainsys.planner.asked import parse_asked
from trainsys.planner.check import check_layout
from trainsys.planner.plan import Plan
from trainsys.planner.remedies import peak_gib
from trainsys.planner.search import search
from trainsys.planner.why import Answer, why_not


@pytest.fixture(scope="module")
def winner(large: RunConfig) -> Plan:
    return search(large).plans[0]


def ask(config: RunConfig, winner: Plan, text: str, num_ranks: int = 8) -> Answer:
    return why_not(config, parse_asked(text), winner, num_ranks)


@pytest.mark.parametrize(
    ("text", "rule", "knob"),
    [
        ("tp3", "parallel.tp=3 does not divide the 8 ranks of the cluster", "set parallel.tp=2"),
        ("dp4,tp4", "parallel.dp·tp=4·4=16 does not divide the 8 ranks of the cluster", "set parallel.dp=2"),
        ("dp2,tp2,pp1,cp1", "is not the 8 ranks of the cluster", "set parallel.dp=4"),
        ("ep2", "parallel.ep=2 exceeds model.num_experts=0", "set parallel.ep=1"),
        ("vp2,1f1b", "parallel.vp=2 with parallel.schedule=1f1b", "parallel.schedule=interleaved"),
    ],
)
def test_an_illegal_one_is_told_its_rule_and_its_knob(
    large: RunConfig, winner: Plan, text: str, rule: str, knob: str
) -> None:
    answer = ask(large, winner, text)
    assert answer.verdict == "illegal"
    assert rule in answer.rule
    assert knob in answer.knob


def test_the_rule_is_that_of_the_model_where_the_ranks_allow_it(large: RunConfig, winner: Plan) -> None:
    odd = replace(large, model=replace(large.model, ffn_dim=14340))
    answer = ask(odd, winner, "tp8")
    assert answer.verdict == "illegal"
    assert answer.rule == "model.ffn_dim=14340 is not divisible by parallel.tp=8"


def test_one_over_memory_says_by_how_much_and_what_helps(large: RunConfig, winner: Plan) -> None:
    """Every remedy that is said to fit does, and the smallest steps come first."""
    device = replace(large.cluster.device, memory_gib=96.0)
    batch = replace(large.batch, microbatch_size=2)
    tight = replace(large, cluster=replace(large.cluster, device=device), batch=batch)
    answer = ask(tight, winner, "dp8,zero1,norecompute,nooffload")
    assert answer.verdict == "memory"
    assert answer.over_gib == pytest.approx(answer.peak_gib - answer.limit_gib)
    assert answer.over_gib == pytest.approx(sum(answer.memory.values()) - tight.cluster.device.memory_gib)
    assert {remedy.fits for remedy in answer.remedies} == {True}
    changes = {remedy.change: remedy for remedy in answer.remedies}
    asked = replace(large.parallel, **parse_asked("dp8,tp1,pp1,zero1,recompute"))
    assert changes["parallel.recompute=full"].peak_gib == pytest.approx(peak_gib(tight, asked))
    assert changes["batch.microbatch_size=1"].peak_gib < answer.limit_gib < answer.peak_gib
    assert answer.step_s > 0


def test_where_nothing_fits_the_best_remedy_is_named(small: RunConfig) -> None:
    tiny = replace(small, cluster=replace(small.cluster, device=replace(small.cluster.device, memory_gib=1e-3)))
    answer = ask(tiny, search(small).plans[0], "dp4", 4)
    assert answer.verdict == "memory"
    assert [remedy.fits for remedy in answer.remedies] == [False]


def test_a_slower_one_says_which_parts_cost_the_difference(large: RunConfig, winner: Plan) -> None:
    answer = ask(large, winner, "tp8")
    assert answer.verdict == "slower"
    assert answer.factor == pytest.approx(answer.step_s / winner.step_s)
    assert sum(answer.difference_s.values()) == pytest.approx(answer.step_s - winner.step_s)
    assert answer.difference_s["tp"] > 0
    best = search(replace(large, parallel=replace(large.parallel, tp=8)), fixed=["tp"]).plans[0]
    assert answer.layout == best.layout
    assert answer.step_s == best.step_s


def test_the_winner_is_the_best_of_itself(large: RunConfig, winner: Plan) -> None:
    assert ask(large, winner, winner.layout).verdict == "best"
    assert ask(large, winner, f"dp{winner.parallel.dp}").verdict == "best"


def test_what_is_said_to_be_instead_is_legal(large: RunConfig, winner: Plan) -> None:
    key, _, value = ask(large, winner, "tp3").knob.removeprefix("set parallel.").partition("=")
    degree = int(value)
    check_layout(replace(large, parallel=replace(large.parallel, **{key: degree, "dp": 8 // degree})))


def test_every_line_of_a_plan_can_be_asked_about(small: RunConfig) -> None:
    """With its split of the layers and its microbatch size: the same seconds come back."""
    report = search(small, any_microbatch=True)
    best = report.plans[0]
    lines = {bool(p.parallel.stage_layers): p for p in report.plans[1:] if p.parallel.pp > 1}
    assert True in lines
    for plan in lines.values():
        answer = why_not(small, parse_asked(plan.name(True)), best, 4, any_microbatch=True)
        assert answer.layout.split()[0].startswith(plan.layout.split()[0].partition("[")[0])
        assert answer.step_s <= plan.step_s * (1 + 1e-9)
        assert answer.layout.endswith(f" mb{plan.microbatch_size}")
        if plan.parallel.stage_layers:
            assert answer.layout.split()[0] == plan.layout.split()[0]


def test_a_split_or_ragged_replicas_asked_for_are_answered_for(small: RunConfig) -> None:
    best = search(small).plans[0]
    lopsided = ask(small, best, "dp1·tp2·pp2[1,5]", 4)
    assert lopsided.verdict == "slower"
    assert lopsided.layout.startswith("dp1·tp2·pp2[1,5]")
    ragged = ask(small, best, "dp[2,1]·tp1·pp2[4,2] 1f1b", 4)
    assert ragged.layout.startswith("dp[2,1]·tp1·pp2[4,2]")
    assert ask(small, best, "dp[2,3]·tp1·pp2", 4).verdict == "illegal"
    assert ask(small, best, "pp2[4,4]", 4).verdict == "illegal"
    assert ask(small, best, "placed", 4).knob == "leave out placed"


def test_another_microbatch_size_is_another_layout(small: RunConfig) -> None:
    best = search(small, any_microbatch=True).plans[0]
    other = 1 if best.microbatch_size > 1 else 2
    answer = why_not(small, parse_asked(f"{best.layout} mb{other}"), best, 4, any_microbatch=True)
    assert answer.verdict != "best"
    assert answer.winner.endswith(f" mb{best.microbatch_size}")
    same = why_not(small, parse_asked(best.name(True)), best, 4, any_microbatch=True)
    assert same.verdict == "best"


def test_no_remedy_changes_nothing(small: RunConfig) -> None:
    tiny = replace(small, cluster=replace(small.cluster, device=replace(small.cluster.device, memory_gib=1e-3)))
    answer = ask(tiny, search(small).plans[0], "dp4,recompute", 4)
    assert all(remedy.peak_gib < 0.99 * answer.peak_gib for remedy in answer.remedies)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("tp8,pp4", {"tp": 8, "pp": 4}),
        ("tp=8 zero=1", {"tp": 8, "zero": 1}),
        ("parallel.tp=2,recompute=full", {"tp": 2, "recompute": "full"}),
        ("dp2·tp1·pp2[2,4] 1f1b", {"dp": 2, "tp": 1, "pp": 2, "stage_layers": (2, 4), "vp": 1, "schedule": "1f1b"}),
        (
            "dp[1×3,2]·tp2·pp4 1f1b mb2",
            {"stage_replicas": (1, 1, 1, 2), "tp": 2, "pp": 4, "schedule": "1f1b", "microbatch_size": 2},
        ),
        ("pp2[4,3,4x4,5,4] placed", {"pp": 2, "stage_layers": (4, 3, 4, 4, 4, 4, 5, 4), "vp": 4, "placed": True}),
        ("sequence_parallel=false", {"sequence_parallel": False}),
        (
            "dp8·tp2·pp2·vp2 zero1 sp interleaved recompute",
            {"dp": 8, "tp": 2, "pp": 2, "vp": 2, "zero": 1, "sequence_parallel": True, "schedule": "interleaved",
             "recompute": "full"},
        ),
    ],
)  # fmt: skip
def test_layouts_are_asked_for_in_plain_words(text: str, asked: dict[str, object]) -> None:
    assert parse_asked(text) == asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no layout"),
        ("tp8,tp4", "names tp twice: 8 and 4"),
        ("tpx", "why=tpx names no part of a layout"),
        ("sequence_parallel=maybe", "names no part"),
        ("fast", "names no part"),
        ("zero7", "parallel.zero=7 is unknown; set one of 0, 1, 2, 3"),
        ("tp0", "parallel.tp=0 must be at least 1"),
        ("tp-1", "names no part"),
        ("mb0", "at least 1 sequence"),
        ("pp2[4,×3]", "is no number of a list"),
        ("pp0[4,3]", "parallel.pp=0 must be at least 1"),
        ("pp2[4,3,5]", "names 3 stages but parallel.pp=2"),
    ],
)
def test_what_names_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_asked(text)
