"""Ranks die, and state arrives wrong, while the source is being released: the loss stays bit-equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_kills import check, train
from trainsys.elastic import serve
from trainsys.elastic.check.record import read
from trainsys.elastic.manager import MOST_WRONG
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.recorder import Recorder
from trainsys.elastic.transit import Transit
from trainsys.space.strips import strips

PROGRESSIVE = ("elastic.release=progressive", "elastic.staging_mib=0.25")
KILLS = [  # (layout, faults, most layouts under which the state stands at a time)
    ("dp2·pp2 zero1", "kill@4:2:backward,kill@4:3:transfer", 2),
    ("dp2·pp2 zero1", "kill@2:2:backward,join@3,kill@3:4:transfer", 2),
    ("dp4 zero0", "kill@4:0:reduce,kill@4:2:transfer", 2),
    ("dp4·ep2 zero1", "kill@5:1:backward,kill@5:0:transfer", 2),
    ("dp3·pp2 zero1", "join@2,kill@2:3:transfer,kill@7:5:reduce,kill@7:6:verify", 2),
    ("dp3·pp2 zero1", "kill@3:5:forward,kill@3:1:verify", 1),
    ("dp2·tp2 zero1", "kill@5:1:forward,kill@5:0:connect", 1),
]


@pytest.mark.parametrize(("layout", "faults", "most"), KILLS, ids=str)
def test_a_kill_while_the_source_is_released(
    layout: str, faults: str, most: int, undisturbed: Callable[[str], Recorder],
    tmp_path: Path,
) -> None:  # fmt: skip
    """The next rank dies when half of the source is gone: the rest of the way begins at what stands by then."""
    recorder = train(tmp_path, layout, faults, *PROGRESSIVE)
    check(recorder, undisturbed(layout), recorder.config)
    assert len(recorder.faults) == faults.count("kill")
    (attempt,) = read(recorder.run_dir).attempts
    standing = [[stop - first for _, first, stop in line["held"]] for line in attempt.opened.values()]
    assert max(map(len, standing)) == most
    assert max(sum(portions) for portions in standing) > 4


def damaging(times: int) -> Callable[..., None]:
    """Body of a rank of which a value is another than was sent, in so many portions after the third."""

    def body(*args: Any) -> None:
        run, calls = Transit.run, [0, 0]

        def damaged(self: Transit, steps: Any, local: Any) -> None:
            run(self, steps, local)
            calls[0] += 1
            if calls[0] > 3 and calls[1] < times and local:
                self.new.slots["exp_avg"][strips(local)[0].dst] += 1
                calls[1] += 1

        Transit.run = damaged  # type: ignore[method-assign]
        serve.rank_main(*args)

    return body


def once(*args: Any) -> None:
    damaging(1)(*args)


def always(*args: Any) -> None:
    damaging(99)(*args)


def test_what_arrives_wrong_is_sent_again(
    rank_1_runs: Callable[[Any], None], undisturbed: Callable[[str], Recorder], tmp_path: Path
) -> None:  # fmt: skip
    rank_1_runs(once)
    recorder = train(tmp_path, "dp2·pp2 zero1", "kill@4:2:backward", *PROGRESSIVE)
    check(recorder, undisturbed("dp2·pp2 zero1"), recorder.config)
    assert any("exp_avg changed in transit" in change.reason for change in recorder.changes)


def test_what_always_arrives_wrong_ends_the_run(rank_1_runs: Callable[[Any], None], tmp_path: Path) -> None:
    rank_1_runs(always)
    with pytest.raises(ElasticError, match=rf"exp_avg changed in transit.*, {MOST_WRONG} times in a row"):
        train(tmp_path, "dp2·pp2 zero1", "kill@4:2:backward", *PROGRESSIVE)
