"""Ranks killed inside collectives: the blocked get away, groups are edited in place, a failed edit is tried again."""

from __future__ import annotations

import pytest

from benchmarks._regroup_deaths import PARTS, deaths, detection, second_deaths
from benchmarks.regroup import groups

pytestmark = pytest.mark.alone


def test_a_rank_that_is_no_neighbour_of_the_dead_is_free_at_once() -> None:
    found = detection(4, groups, aborts=True, count=1, timeout_s=20.0)["seconds"]
    assert len(found["neighbour"]) == 2
    assert len(found["other"]) == 1
    assert 0 < found["other"][0] < 1.0, "its groups' timeout is 20 s"


def test_edits_after_deaths_leave_nothing_behind() -> None:
    found = deaths(4, groups, "edit", count=3)
    assert (found["deaths"], found["epochs"]) == (3, 7)
    assert all(grown <= 2 for grown in found["growth"].values()), found["growth"]
    assert found["kept"] > 0, "of four groups and more at least one lost nobody"
    assert all(len(found["ms"][part]) == 3 for part in PARTS)
    assert all(sum(parts) <= total for *parts, total in zip(*(found["ms"][p] for p in PARTS[:4]), strict=True))


def test_an_edit_in_which_a_second_member_dies_is_tried_again() -> None:
    found = second_deaths(4, groups, count=2)
    assert len(found["ms"]) == 2
    assert found["asked"] == 4
    assert found["failed"] >= 1
    assert all(held >= 3 for held in found["held"]), "a rank keeps its old groups until the new ones stand"
