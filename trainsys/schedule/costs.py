"""What the actions of a schedule take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainsys.schedule.actions import Kind


@dataclass(frozen=True)
class Costs:
    """Seconds of each action.

    Attributes:
        f_s: of F, per stage.
        b_s: of B, per stage.
        send_s: of one transfer: a number, or a function of (source lane, destination lane).
        action_s: the host's cost of any action, SEND and RECV included, paid before it starts.
        i_s, w_s: of I and W, per stage; by default each half of B.
        r_s: of R, per stage; by default that of F.
        s_s, t_s: of S and T, of a lane under its first stage; by default 0, as E and G, which look up.
        scale: of each microbatch, what its compute takes in units of these; by default 1.
        slow: of each lane, how many times as long its compute takes; by default 1.
        offload_s, reload_s: of the copies that OFFLOAD and RELOAD start, per stage; by default 0.
    """

    f_s: Sequence[float]
    b_s: Sequence[float]
    send_s: Callable[[int, int], float] | float = 0.0
    action_s: float = 0.0
    i_s: Sequence[float] | None = None
    w_s: Sequence[float] | None = None
    r_s: Sequence[float] | None = None
    scale: Sequence[float] | None = None
    offload_s: Sequence[float] | None = None
    reload_s: Sequence[float] | None = None
    s_s: Sequence[float] | None = None
    t_s: Sequence[float] | None = None
    slow: Sequence[float] | None = None

    def hop_s(self, source: int, destination: int) -> float:
        """Seconds of a message between two lanes; none within one."""
        if source == destination:
            return 0.0
        return self.send_s(source, destination) if callable(self.send_s) else self.send_s

    def table(self, num_stages: int) -> dict[Kind, Sequence[float]]:
        """Seconds by kind and stage. Raises ValueError if a list does not have one number per stage."""
        half = [b / 2 for b in self.b_s]
        free = [0.0] * num_stages
        costs = {
            Kind.F: self.f_s,
            Kind.B: self.b_s,
            Kind.I: self.i_s or half,
            Kind.W: self.w_s or half,
            Kind.R: self.r_s or self.f_s,
            Kind.OFFLOAD: self.offload_s or free,
            Kind.RELOAD: self.reload_s or free,
            Kind.E: free,
            Kind.S: self.s_s or free,
            Kind.T: self.t_s or free,
            Kind.G: free,
        }
        for kind, row in costs.items():
            if len(row) != num_stages:
                raise ValueError(f"costs of {kind}: {len(row)} numbers for {num_stages} stages; give one per stage")
        return costs
