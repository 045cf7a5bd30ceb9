"""Which process groups outlive a change of membership."""

from __future__ import annotations

from collections.abc import Mapping


def clean_groups(quiet: Mapping[int, Mapping[str, int]]) -> tuple[str, ...]:
    """Those whose members all take part, have it quiet, and count the same operations.

    Args:
        quiet: rank that takes part -> name of a group (``e3/0,1,4``) that is quiet there -> operations begun on it.
    """
    counts = {name: seq for groups in quiet.values() for name, seq in groups.items()}
    return tuple(name for name, seq in counts.items() if _everywhere(name, seq, quiet))


def _everywhere(name: str, seq: int, quiet: Mapping[int, Mapping[str, int]]) -> bool:
    return all(int(r) in quiet and quiet[int(r)].get(name) == seq for r in name.partition("/")[2].split(","))
