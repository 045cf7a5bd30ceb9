"""A broken datapath is named by step, chunk and members; a whole one passes, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapath_check import check, check_backwards, check_load
from trainsys.comm.datapaths import DATAPATHS
from trainsys.comm.wires import Wires, mesh, star, two_level

WIRES = [
    mesh(2, 1.0),
    mesh(3, 1.0),
    mesh(6, 1.0),
    star(5, 1.0),
    two_level(2, 2, 8.0, 1.0),
    two_level(3, 4, 8.0, 1.0, 2),
]


@pytest.mark.parametrize("wires", WIRES, ids=lambda wires: wires.name)
@pytest.mark.parametrize("name", DATAPATHS)
def test_what_is_generated_is_a_collective(name: str, wires: Wires) -> None:
    if name in ("rail", "hierarchical", "double_ring") and len(set(wires.hosts)) == 1:
        with pytest.raises(ValueError, match=name):
            DATAPATHS[name](wires, 0)
        return
    path = DATAPATHS[name](wires, 0)
    check(path)
    check_backwards(path.backwards())
    assert path.name == name and path.size == wires.num_ranks
    assert len(path.sends) == path.num_chunks * (path.size - 1)
    more = DATAPATHS[name](wires, path.slices * 2)
    check(more)
    assert more.slices == path.slices * 2


@pytest.mark.parametrize("name", DATAPATHS)
def test_one_host_of_one_is_served_by_who_can(name: str) -> None:
    if name in ("rail", "hierarchical", "double_ring"):
        return
    path = DATAPATHS[name](mesh(1, 1.0), 0)
    check(path)
    assert len(path.sends) == 0


def _drop(rows: np.ndarray) -> np.ndarray:
    return np.delete(rows, 5, axis=0)


def _duplicate(rows: np.ndarray) -> np.ndarray:
    later = rows[5].copy()
    later[0] = rows[-1, 0]
    return np.vstack([rows, later])


def _swap(rows: np.ndarray) -> np.ndarray:
    changed = rows.copy()
    changed[[0, -1], 1] = rows[[-1, 0], 1]
    return changed


def _retime(rows: np.ndarray) -> np.ndarray:
    changed = rows.copy()
    came = {(chunk, dst): step for step, chunk, _, dst in rows.tolist()}
    relayed = [i for i, (_, chunk, src, _) in enumerate(rows.tolist()) if (chunk, src) in came]
    changed[relayed[-1], 0] = 0
    return changed[np.argsort(changed[:, 0], kind="stable")]


@pytest.mark.parametrize("mutate", [_drop, _duplicate, _swap, _retime])
@pytest.mark.parametrize("name", ["ring", "k_ring", "two_level", "rail", "hierarchical", "double_ring"])
def test_mutations_are_found(name: str, mutate: Callable[[np.ndarray], np.ndarray]) -> None:
    path = DATAPATHS[name](two_level(2, 4, 8.0, 1.0), 0)
    broken = Datapath(path.name, path.size, path.slices, mutate(path.sends))
    with pytest.raises(ValueError, match=rf"{name}: (step \d+, chunk \d+ from \d+ to \d+|chunk \d+ never arrives)"):
        check(broken)
    back = path.backwards()
    with pytest.raises(ValueError, match=rf"{name} backwards: (step|chunk) \d+"):
        check_backwards(Datapath(back.name, back.size, back.slices, mutate(back.sends)))


@pytest.mark.parametrize("row", [(0, 0, 0, 0), (0, 9, 0, 1), (0, 0, 0, 7), (-1, 0, 0, 1), (0, 1, 0, 1)])
def test_a_send_that_cannot_be_is_named(row: tuple[int, int, int, int]) -> None:
    path = DATAPATHS["direct"](mesh(3, 1.0), 0)
    with pytest.raises(ValueError, match="direct: step"):
        check(Datapath("direct", 3, 1, np.vstack([path.sends, np.array(row, dtype=np.int32)])))


def test_load_of_wires() -> None:
    check_load(DATAPATHS["k_ring"](mesh(5, 1.0), 0), mesh(5, 1.0), most=1)
    check_load(DATAPATHS["rail"](two_level(2, 4, 8.0, 1.0, 4), 0), two_level(2, 4, 8.0, 1.0, 4), most=1)
    check_load(DATAPATHS["ring"](star(5, 1.0), 0), star(5, 1.0), most=1)
    with pytest.raises(ValueError, match="step 0 puts 4 chunks on the wire"):
        check_load(DATAPATHS["direct"](star(5, 1.0), 0), star(5, 1.0), most=1)
