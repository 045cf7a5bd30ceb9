"""What manager and workers say to each other. Messages of one connection arrive in order.

Worker → manager: Hello, Beat, Proposal, Failed, Prepared, Quiesced, Staged, Saved, StopWanted, Leaving. Manager →
worker: Prepare, Open, CommitEpoch, Verdict, Fault, Quit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trainsys.comm.stamps import Doing, StepTimes
from trainsys.config import ParallelConfig
from trainsys.parallel.step import Decision, Report
from trainsys.schedule.simulate import Event
from trainsys.space.layout import Layout
from trainsys.space.portions import Held


@dataclass(frozen=True)
class Hello:
    """A worker has started, imported everything and connected. It holds no state until its first CommitEpoch.

    Attributes:
        prints: of its code and of its config; all members' are the same.
        again: it was connected before, to a manager that is lost.
        steps: optimizer steps of which it was told, -1: none.
        switched: epoch of the last CommitEpoch that it was told of.
    """

    rank: int
    pid: int
    node: int
    prints: tuple[str, str] = ("", "")
    again: bool = False
    steps: int = -1
    switched: int = -1


@dataclass(frozen=True)
class Beat:
    """The process is alive; sent every fifth of the heartbeat limit, and when an operation gets old.

    Attributes:
        doing: in `epoch`.
    """

    epoch: int = -1
    doing: Doing | None = None


@dataclass(frozen=True)
class Proposal:
    """A finished step, ready to be committed: all that `apply` needs is on the rank and on its mirror."""

    epoch: int
    report: Report
    events: tuple[Event, ...] = ()  # of traced steps
    peak_bytes: int = 0
    times: StepTimes | None = None


@dataclass(frozen=True)
class Failed:
    """Communication failed in `epoch`: some peer is gone, or a connection broke. `wrong`: what arrived is not right."""

    epoch: int
    reason: str
    wrong: bool = False


@dataclass(frozen=True)
class Quiesced:
    """Everything of the old epoch is abandoned; ready for `epoch`.

    Attributes:
        clean: group name -> operations done.
        released: (epoch, portions): of the transition entered last, the portions whose source this rank gave up.
    """

    epoch: int
    clean: dict[str, int]
    released: tuple[int, int] = (-1, 0)


@dataclass(frozen=True)
class Census:
    """One rank's evidence that the transition is right; sums of hashes are independent of the layout.

    Attributes:
        before: (tensor, slot) -> hash of the elements this rank vouches for in the source.
        after: (tensor, slot) -> hash of the elements this rank owns in the destination.
        elements: tensor -> owned elements in the destination.
        owned: (tensor, shard, start) -> hash of the owner's piece in the destination, in the first shard that has it.
        copies: (such a key, hash) of every other copy: on replicas, on mirrors and within the team.
        step: optimizer steps that the source state has seen; None: the rank holds none.
    """

    before: dict[tuple[int, str], int] = field(default_factory=dict)
    after: dict[tuple[int, str], int] = field(default_factory=dict)
    elements: dict[int, int] = field(default_factory=dict)
    owned: dict[tuple[int, int, int], int] = field(default_factory=dict)
    copies: tuple[tuple[tuple[int, int, int], int], ...] = ()
    step: int | None = None


@dataclass(frozen=True)
class Staged:
    """The destination state stands, beside the source state if that is not released as it goes."""

    epoch: int
    census: Census
    bytes_received: int
    seconds: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint is complete on disk, or why it is not."""

    step: int
    path: str
    error: str = ""


@dataclass(frozen=True)
class StopWanted:
    """The worker's own launcher asked it to end: stop the job at the next step boundary."""


@dataclass(frozen=True)
class Leaving:
    """The rank's place will be taken away soon (a preemption notice): move its work elsewhere at a step boundary."""


@dataclass(frozen=True)
class Open:
    """Enter `epoch`: connect, bring the state from `src` to `dst`, report Staged."""

    epoch: int
    src: Layout | None  # committed; None: fresh start, from `resume` or from initial values
    dst: Layout
    parallel: ParallelConfig
    step: int  # committed optimizer steps
    nodes: dict[int, int]  # rank -> node
    alive: tuple[int, ...]  # ranks that hold a part of the state
    participants: tuple[int, ...]
    keep: tuple[str, ...] = ()  # process groups clean on all of their members
    resume: str = ""
    held: tuple[Held, ...] = ()  # where which portions stand; empty: under `src`, which stays until the commit
    portions: int = 1
    run: str = ""  # names this attempt's files in the history
    prepared: bool = False  # by a `Prepare` of this epoch: groups and state are there, beside the present ones


@dataclass(frozen=True)
class Prepare:
    """At `step` begin to connect for `epoch` and to bring the state from `src` to `dst`, while steps go on.

    Attributes as of an `Open`, which follows if nothing comes between; every verdict until then is told to all
    participants.
    """

    epoch: int
    src: Layout
    dst: Layout
    parallel: ParallelConfig
    step: int
    nodes: dict[int, int]
    alive: tuple[int, ...]
    participants: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """The destination of `epoch` stands and has caught up with the steps so far; or, with `error`, will not stand."""

    epoch: int
    error: str = ""


@dataclass(frozen=True)
class CommitEpoch:
    """Every participant has staged and the census is right: switch to the destination.

    `checkpoint`: then save first (one was due when the last epoch broke); `stop`: train no further.
    """

    epoch: int
    checkpoint: bool = False
    stop: bool = False


@dataclass(frozen=True)
class Verdict:
    """The step counts. Then, in this order: `prepare` begins, `checkpoint` saves, `stop` waits for Quit, `change`
    pauses for an epoch."""

    decision: Decision
    checkpoint: bool = False
    stop: bool = False
    change: int = -1
    prepare: Prepare | None = None


@dataclass(frozen=True)
class Fault:
    """Abandon whatever is under way and get ready for `epoch`."""

    epoch: int


@dataclass(frozen=True)
class Quit:
    """Leave at once; `reason` is empty after a clean end."""

    reason: str = ""
