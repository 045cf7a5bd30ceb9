"""The vocabulary on all ranks: the same model as with the head on the last one, to the same bits wherever its parts are."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.runs import run_config, run_all
from trainsys.testing import RankPool

def test_first(ranks: RankPool):
    (ref,)=run_all(ranks,1,[run_config("float64",{"num_layers":4})])
    print(ref.losses)
    for form in ("two_barriers","one_barrier"):
        got=run_all(ranks,4,[run_config("float64",{"num_layers":4,"vocab_parts":4},pp=4,vocabulary=form), run_config("float64",{"num_layers":4,"vocab_parts":4},pp=1,vocabulary=form)])
        print([[float.fromhex(x) for x in l] for l in ref.losses])
        for g in got: print([[float.fromhex(x) for x in l] for l in g.losses])
