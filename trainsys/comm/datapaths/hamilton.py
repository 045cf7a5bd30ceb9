"""Hamiltonian cycles of the complete digraph that share no arc: each is a ring, together they use every link.

K*_n splits into n-1 of them for every n but 4 and 6 (Tillson 1980), where 2 and 4 are the most. TASP (arXiv 2509.26541)
rides such rings for attention.
"""

from __future__ import annotations

import random
from functools import cache

Cycle = tuple[int, ...]
MOST_SEARCHED = 64
_SIX = ((0, 1, 2, 3, 4, 5), (0, 2, 1, 3, 5, 4), (0, 4, 1, 5, 3, 2), (0, 5, 2, 4, 3, 1))  # by exhaustive search


@cache
def cycles(n: int) -> tuple[Cycle, ...]:
    """Arc-disjoint Hamiltonian cycles of K*_n: n-1, as many as there can be, but 2 for n=4 and 4 for n=6.

    Odd n by Walecki's construction. Even n up to 64 by a search, the same each time, of 0.1 s for n=40 and 1 s for
    n=64. Beyond, even n have n-2 only, of the n-1 that there are: undirected cycles, both ways round.

    Raises:
        ValueError: for less than 2 vertices.
    """
    if n < 2:
        raise ValueError(f"a ring needs 2 members; there {'is' if n == 1 else 'are'} {n}")
    if n == 2:
        return ((0, 1),)
    if n == 4:
        return ((0, 1, 2, 3), (0, 3, 2, 1))
    if n == 6:
        return _SIX
    return _walecki(n) if n % 2 else _searched(n) if n <= MOST_SEARCHED else _two_hubs(n)


def zigzag(start: int, m: int) -> Cycle:
    """start, start+1, start-1, start+2, … modulo even m: all differences are different; ends at start + m/2."""
    return tuple((start + (k + 1) // 2 * (1 if k % 2 else -1)) % m for k in range(m))


def _walecki(n: int) -> tuple[Cycle, ...]:
    """A hub and a zigzag through the others, turned; and each the other way round."""
    there = [(n - 1, *zigzag(i, n - 1)) for i in range((n - 1) // 2)]
    return tuple(there + [(cycle[0], *cycle[:0:-1]) for cycle in there])


def _two_hubs(n: int) -> tuple[Cycle, ...]:
    """As `_walecki`, with a second hub in the middle of each zigzag; what remains is a matching."""
    half = n // 2 - 1
    ways = [zigzag(i, n - 2) for i in range(half)]
    there = [(n - 1, *way[:half], n - 2, *way[half:]) for way in ways]
    return tuple(there + [(cycle[0], *cycle[:0:-1]) for cycle in there])


def _searched(n: int) -> tuple[Cycle, ...]:
    """From the rotations x → x+d, exchanging alternating parts of two until each is one cycle.

    An exchange between two permutations keeps the product of all signs, a cycle of even length is odd: n-1 of them have
    sign -1, the rotations have (-1)^(n/2). So for n divisible by 4, seven are first split anew in the other sign.
    """
    dice = random.Random(n)
    after = [[(x + d) % n for x in range(n)] for d in range(1, n)]
    if n % 4 == 0:
        _turn_sign(after, dice)
    count = [_num_cycles(f) for f in after]
    while True:
        bad = [i for i, c in enumerate(count) if c > 1]
        if not bad:
            return tuple(_cycle(f) for f in after)
        i, j = dice.choice(bad) if dice.random() < 0.5 else dice.randrange(n - 1), dice.randrange(n - 1)
        if i == j:
            continue
        parts = _parts(after[i], after[j])
        f, g = list(after[i]), list(after[j])
        for part in parts:
            if dice.random() < 0.5:
                for x in part:
                    f[x], g[x] = g[x], f[x]
        now = _num_cycles(f), _num_cycles(g)
        if dice.random() < 0.05 ** (sum(now) - count[i] - count[j]):
            after[i], after[j] = f, g
            count[i], count[j] = now


def _parts(f: list[int], g: list[int]) -> list[list[int]]:
    """Sets of vertices on which `f` and `g` have the same values, so that they may exchange them there."""
    before = {y: x for x, y in enumerate(f)}
    seen: set[int] = set()
    parts = []
    for start in range(len(f)):
        if start in seen:
            continue
        part, x = [], start
        while x not in seen:
            seen.add(x)
            part.append(x)
            x = before[g[x]]
        parts.append(part)
    return parts


def _turn_sign(after: list[list[int]], dice: random.Random) -> None:
    """Split the first seven permutations anew, so that the product of their signs is the other one."""
    n, old = len(after[0]), after[:7]

    def sign(functions: list[list[int]]) -> int:
        return sum(n - _num_cycles(f) for f in functions) % 2

    new = old
    while sign(new) == sign(old):
        choice = [[f[x] for f in old] for x in range(n)]
        for values in choice:
            dice.shuffle(values)
        new = []
        for _ in old:
            new.append(_matching(choice))
            choice = [[y for y in values if y != new[-1][x]] for x, values in enumerate(choice)]
    after[:7] = new


def _matching(choice: list[list[int]]) -> list[int]:
    """A different value for each vertex, of those it may choose, by augmenting paths."""
    owner: dict[int, int] = {}

    def place(x: int, tried: set[int]) -> bool:
        for y in choice[x]:
            if y not in tried:
                tried.add(y)
                if y not in owner or place(owner[y], tried):
                    owner[y] = x
                    return True
        return False

    for x in range(len(choice)):
        assert place(x, set()), "a regular bipartite graph has a perfect matching (Hall)"
    found = {x: y for y, x in owner.items()}
    return [found[x] for x in range(len(choice))]


def _cycle(after: list[int]) -> Cycle:
    way = [0]
    while after[way[-1]]:
        way.append(after[way[-1]])
    return tuple(way)


def _num_cycles(after: list[int]) -> int:
    left, count = set(range(len(after))), 0
    while left:
        count += 1
        x = left.pop()
        while after[x] in left:
            x = after[x]
            left.remove(x)
    return count
