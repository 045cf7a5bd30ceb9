"""How a sequence is cut over cp teams: each takes one chunk from the front and the matching one from the back.

Under a causal mask a late position looks at more than an early one. Of 2·cp nearly equal chunks team i takes chunks i
and 2·cp-1-i, which makes the teams' work equal (Llama 3, arXiv:2407.21783, §3.3.2). Any length from 2·cp on is cut;
teams get equally many positions where cp divides it.
"""

from __future__ import annotations

from itertools import pairwise


def chunks(seq_len: int, cp: int) -> list[range]:
    """The positions of each of the 2·cp chunks, in order."""
    ends = [i * seq_len // (2 * cp) for i in range(2 * cp + 1)]
    return [range(a, b) for a, b in pairwise(ends)]


def parts(seq_len: int, cp: int, index: int) -> tuple[range, range]:
    """The two chunks of team `index`, the early one first."""
    every = chunks(seq_len, cp)
    return every[index], every[2 * cp - 1 - index]
