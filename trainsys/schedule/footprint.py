"""What the microbatches under way keep on a lane, in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainsys.schedule.actions import Action, Kind


@dataclass(frozen=True)
class Footprint:
    """Bytes per stage and microbatch, one number per stage each.

    Attributes:
        kept: by F, until the backward ends.
        until_w: the part of them that stays from I to W.
        input: the part of them that stays under recompute or offload: the stage's input.

    Raises:
        ValueError: lengths differ, or a part is not within 0 and `kept`.
    """

    kept: Sequence[float]
    until_w: Sequence[float]
    input: Sequence[float]

    def __post_init__(self) -> None:
        for name, row in (("until_w", self.until_w), ("input", self.input)):
            if len(row) != len(self.kept):
                raise ValueError(f"footprint: {len(row)} numbers of {name} for {len(self.kept)} of kept")
            for stage, (part, whole) in enumerate(zip(row, self.kept, strict=True)):
                if not 0 <= part <= whole:
                    raise ValueError(f"footprint: {name} of stage {stage} is {part:g}, not within 0 and kept {whole:g}")

    def curve(self, spans: Sequence[tuple[Action, float, float]]) -> list[tuple[float, float]]:
        """Memory over time: (seconds, bytes from then on), by time; what ends frees before what starts then takes.

        Args:
            spans: the actions of one lane in its order, with the seconds at which each starts and ends.
        """
        again = {(a.stage, a.microbatch) for a, _, _ in spans if a.kind is Kind.R}
        changes = []  # (seconds, order among those of one instant, bytes)
        for place, (action, start, end) in enumerate(spans):
            at_start, at_end = self._change(action, (action.stage, action.microbatch) in again)
            changes += [(start, 2 * place, at_start), (end, 2 * place + 1, at_end)]
        curve, alive = [(0.0, 0.0)], 0.0
        for seconds, _, change in sorted(changes):
            if change:
                alive += change
                curve.append((seconds, alive))
        return curve

    def _change(self, action: Action, again: bool) -> tuple[float, float]:
        """Bytes at the start and at the end of `action`; `again`: its forward is run a second time."""
        kept, until_w, rest = self.kept[action.stage], self.until_w[action.stage], self.input[action.stage]
        moved = 0.0 if again else kept - rest  # of what is to be run again only the input is there to be moved
        match action.kind:
            case Kind.F:
                return (rest if again else kept), 0.0
            case Kind.R:
                return kept - rest, 0.0
            case Kind.OFFLOAD:
                return 0.0, -moved
            case Kind.RELOAD:
                return moved, 0.0
            case Kind.I:
                return 0.0, until_w - kept
            case Kind.W:
                return 0.0, -until_w
            case Kind.B:
                return 0.0, -kept
        return 0.0, 0.0
