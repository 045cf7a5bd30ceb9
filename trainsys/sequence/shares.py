"""Which heads a member has while heads are shared. Imports no torch: the selector prices what is exchanged."""

from __future__ import annotations

Share = tuple[int, int]  # heads [first, last)


def query_heads(heads: int, size: int, member: int) -> Share:
    """Of `member` among `size`."""
    return member * heads // size, (member + 1) * heads // size


def key_heads(heads: int, kv_heads: int, size: int, member: int) -> Share:
    """Those that serve the query heads of `member`."""
    first, last = query_heads(heads, size, member)
    group = heads // kv_heads
    return (first // group, -(-last // group)) if first < last else (0, 0)


def serving(heads: int, kv_heads: int, size: int, member: int) -> list[int]:
    """Of each query head of `member`, which of its key heads serves it."""
    first, last = query_heads(heads, size, member)
    base, _ = key_heads(heads, kv_heads, size, member)
    return [head // (heads // kv_heads) - base for head in range(first, last)]


def repeated(heads: int, kv_heads: int, size: int, member: int) -> int:
    """Key heads that it attends with: one for each query head where they serve unequally many, for calls are even."""
    which = serving(heads, kv_heads, size, member)
    return len(which) if len({which.count(head) for head in which}) > 1 else len(set(which))
