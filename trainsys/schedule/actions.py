"""One step's vocabulary: what a lane does, to which stage, for which microbatch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The letters of a schedule. B = I + W: backward split into input gradient and weight gradient."""

    F = "F"
    B = "B"
    I = "I"  # noqa: E741 - the field's letter for the input gradient
    W = "W"
    R = "R"  # recompute: the forward once more, for the backward that follows
    SEND_F = "SEND_F"  # the stage's output to the next stage
    RECV_F = "RECV_F"  # post the receive of the stage's input
    SEND_B = "SEND_B"  # the gradient of the stage's input to the previous stage
    RECV_B = "RECV_B"  # post the receive of the gradient of the stage's output
    OFFLOAD = "OFFLOAD"  # start copying to the host what F has kept
    RELOAD = "RELOAD"  # start copying it back
    E = "E"  # the lane's part of the input lookup
    S = "S"  # the lane's part of the logits: maxima, sums, those of the targets
    T = "T"  # the gradients of its part of the head's matrix, once all S are known
    G = "G"  # the gradient of its part of the input table

    __hash__ = str.__hash__  # Enum's own is written in Python; schedules hash their kinds millions of times


VOCABULARY = frozenset(
    {Kind.E, Kind.S, Kind.T, Kind.G}
)  # by every lane, under its first stage (schedule/vocabulary.py)
COMPUTE = frozenset({Kind.F, Kind.B, Kind.I, Kind.W, Kind.R}) | VOCABULARY
_TOKEN = re.compile(r"(\d+)([A-Z_]+)(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Action:
    """`kind` done by `stage` for `microbatch`; a SEND or RECV belongs to the stage that calls it.

    Prints as ``2F0`` or ``3SEND_F1``, the notation of torch.distributed.pipelining, and parses back.
    """

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind.value}{self.microbatch}"

    @property
    def is_compute(self) -> bool:
        """True for F, B, I, W, R and the passes of the vocabulary: the actions that occupy the lane's device."""
        return self.kind in COMPUTE

    @classmethod
    def parse(cls, text: str) -> Action:
        """The action that prints as `text`.

        Raises:
            ValueError: naming `text`, if it is not <stage><kind><microbatch>.
        """
        match = _TOKEN.fullmatch(text)
        if match is None or match[2] not in Kind.__members__:
            kinds = ", ".join(Kind.__members__)
            raise ValueError(f"{text!r} is not an action; write <stage><kind><microbatch> with kind one of {kinds}")
        return cls(int(match[1]), Kind[match[2]], int(match[3]))

    def counterpart(self) -> Action:
        """The RECV of a SEND and the SEND of a RECV: the same tensor, seen from the neighbouring stage.

        It takes every microbatch to visit all stages in order, and its stage may not exist (the first stage sends no
        gradient further): `Schedule.counterpart` knows.
        """
        kind, step = COUNTERPART[self.kind]
        return Action(self.stage + step, kind, self.microbatch)


COUNTERPART = {  # the kind at the other end of a transfer, and how many stages further it is
    Kind.SEND_F: (Kind.RECV_F, 1),
    Kind.RECV_F: (Kind.SEND_F, -1),
    Kind.SEND_B: (Kind.RECV_B, -1),
    Kind.RECV_B: (Kind.SEND_B, 1),
}
