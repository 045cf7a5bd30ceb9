"""Fault schedules as text: read in the order of their steps, refused when they cannot happen."""

from __future__ import annotations

import pytest

from trainsys.elastic.faults import parse_faults


def test_a_join_counts_from_its_step_on() -> None:
    events = parse_faults("kill@8:4,join@2", 4, 20)
    assert [str(e) for e in events] == ["join@2", "kill@8:4:forward"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("join@10,kill@5:4", "ranks are 0 to 3 then"),
        ("kill@5:1,kill@8:1:send", "strikes rank 1 a second time"),
        ("kill@5:0,kill@5:1,kill@5:2,kill@5:3", "leaves none of 4 ranks"),
        ("kill@50:0", "train.steps=20"),
        ("kill@5:0:lunch", "names no phase"),
        ("kill@5", "is not kill@STEP:RANK"),
    ],
)
def test_what_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_faults(text, 4, 20)
