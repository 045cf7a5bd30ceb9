"""Rings of the complete graph and of hosts: Hamiltonian, arc-disjoint, as many as there are."""

from __future__ import annotations

from itertools import pairwise

import pytest

from trainsys.comm.datapaths.hamilton import cycles
from trainsys.comm.datapaths.paths import joins, paths, rings


@pytest.mark.parametrize("n", [*range(2, 41), 65, 66, 100])
def test_cycles_are_hamiltonian_disjoint_and_all_there_are(n: int) -> None:
    found = cycles(n)
    assert len(found) == {4: 2, 6: 4, 66: 64, 100: 98}.get(n, n - 1)
    assert all(sorted(cycle) == list(range(n)) for cycle in found)
    arcs = [arc for cycle in found for arc in pairwise((*cycle, cycle[0]))]
    assert len(set(arcs)) == len(arcs) == n * len(found)


@pytest.mark.parametrize("m", [1, 2, 4, 6, 7, 8, 9, 11, 12, 16])
def test_paths_start_once_and_end_once_at_every_vertex(m: int) -> None:
    found = paths(m)
    assert [path[0] for path in found] == list(range(m))
    assert sorted(path[-1] for path in found) == list(range(m))
    assert all(sorted(path) == list(range(m)) for path in found)
    arcs = [arc for path in found for arc in pairwise(path)]
    assert len(set(arcs)) == len(arcs) == m * (m - 1)


@pytest.mark.parametrize("m", [3, 5])
def test_three_and_five_have_no_such_paths(m: int) -> None:
    with pytest.raises(ValueError, match=f"{m} ranks of a host"):
        paths(m)


@pytest.mark.parametrize(("hosts", "m"), [(2, 1), (2, 2), (3, 4), (4, 7), (2, 8), (6, 4)])
def test_rings_use_each_link_inside_and_each_adapter_once(hosts: int, m: int) -> None:
    found = rings(hosts, m)
    arcs = [arc for ring in found for arc in pairwise((*ring, ring[0]))]
    assert len(set(arcs)) == len(arcs)
    assert all(sorted(ring) == list(range(hosts * m)) for ring in found)
    across = [(a, b) for a, b in arcs if a // m != b // m]
    assert len(across) == hosts * m
    assert len({a for a, _ in across}) == len({b for _, b in across}) == hosts * m


@pytest.mark.parametrize("m", [2, 4, 7, 8])
def test_rails_are_kept_by_an_even_number_of_hosts(m: int) -> None:
    assert all(a == b for ring in rings(4, m) for a, b in joins(ring, m))
    assert any(a != b for ring in rings(3, m) for a, b in joins(ring, m))
    assert any(a != b for ring in rings(4, m, rails=False) for a, b in joins(ring, m))


def test_one_host_or_one_member_has_no_ring() -> None:
    with pytest.raises(ValueError, match="2 hosts"):
        rings(1, 4)
    with pytest.raises(ValueError, match="2 members"):
        cycles(1)
