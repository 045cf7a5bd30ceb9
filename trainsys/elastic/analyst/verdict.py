"""What the analyst says: a kind, a place, and a sentence that a person understands."""

from __future__ import annotations

from dataclasses import dataclass

# the four classes of C4 (Dong et al. 2024, arXiv:2406.04594, §4.1), and a node, whose links are all slow
COMPUTATION_HANG, LINK_HANG, SLOW_RANK, SLOW_LINK, SLOW_NODE = (
    "computation hang",
    "communication hang",
    "slow rank",
    "slow link",
    "slow node",
)


@dataclass(frozen=True)
class Finding:
    """One verdict.

    Attributes:
        place: ranks: (rank,), or a link's (source, destination); of a slow node its number.
        factor: how many times as long as it should take; of a hang 0.
        since_step: the first step in which it showed.
        evidence: a clause that says what was compared.
        lasted_s: of a hang, when it was named.
        over: it was so and is no more.
    """

    kind: str
    place: tuple[int, ...]
    factor: float
    since_step: int
    evidence: str
    over: bool = False
    lasted_s: float = 0.0

    @property
    def where(self) -> str:
        """``rank 3``, ``link 2→3``, ``node 1``."""
        if len(self.place) == 2:
            return f"link {self.place[0]}→{self.place[1]}"
        return f"{'node' if self.kind == SLOW_NODE else 'rank'} {self.place[0]}"

    def __str__(self) -> str:
        if self.over:
            return f"{self.where} is no longer slow"
        if self.factor:
            return f"slow {self.where}: {self.evidence} since step {self.since_step}"
        return f"{self.kind} at {self.where}: {self.evidence}"

    def as_dict(self) -> dict[str, object]:
        """For a line of JSON, with the sentence."""
        return {
            "kind": self.kind, "place": list(self.place), "factor": round(self.factor, 3),
            "since_step": self.since_step, "over": self.over,
            "lasted_s": round(self.lasted_s, 4), "says": str(self),
        }  # fmt: skip
