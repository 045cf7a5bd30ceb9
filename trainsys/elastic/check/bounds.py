"""I6: faults are noticed in time, nobody stays blocked after a call-off, files and threads do not accumulate."""

from __future__ import annotations

from trainsys.elastic.check.findings import Case, Findings
from trainsys.elastic.check.record import Attempt, Line

SAYS = "faults are noticed within the limit, nobody stays blocked, no file or thread is left over epoch by epoch"
DECISIVE = ("detections", "call-offs answered", "ranks over 3 epochs and more")
# What a call-off may leave for as long as an operation's timeout: threads that wait for gloo, and their clients of the
# store. Up to 12 files and 6 threads were seen on a busy machine.
FILES, THREADS = 16, 8
GROUP_FILES, GROUP_THREADS = 4, 3  # of gloo's, besides a group's connections; and one more thread waits for each peer


def check(case: Case, found: Findings) -> None:
    """Each in turn."""
    for attempt in case.record.attempts:
        _detected(attempt, case.slack_s, found)
        _answered(attempt, case.slack_s, found)
        for rank, lines in attempt.ranks.items():
            entered = [line for line in lines if line.event == "entered"][1:]  # the first is before any call-off
            if len(entered) >= 2:
                found.count("ranks over 3 epochs and more")
                _steady(rank, entered, attempt.start["comm_timeout_s"], found)


def _detected(attempt: Attempt, slack_s: float, found: Findings) -> None:
    """Silence is counted less what the manager's own process did not run."""
    limit_s = attempt.start["heartbeat_limit_s"]
    for rank, struck in attempt.of_ranks("struck"):
        eviction = attempt.lost.get(rank) or attempt.ended
        if struck["kind"] not in ("kill", "stop", "wake") or eviction is None or not attempt.same_clock(rank):
            continue
        found.count("detections")
        late_s = eviction["t_s"] - struck["t_s"] - eviction.data.get("forgiven_s", 0.0)
        if late_s > limit_s + slack_s:
            found.wrong(
                eviction, f"rank {rank}'s {struck['kind']} is noticed after {late_s:.3f} s, limit {limit_s:g} s "
                          f"({struck.where})"
            )  # fmt: skip
    for line in attempt.lost.values():
        if line["cause"] == "hang":
            found.count("hangs")
            late_s = line["silent_s"] - line["forgiven_s"]
            if late_s > limit_s + slack_s:
                found.wrong(line, f"rank {line['rank']} was silent for {late_s:.3f} s, limit {limit_s:g} s")


def _answered(attempt: Attempt, slack_s: float, found: Findings) -> None:
    """A rank that is freed by an operation's own timeout was not freed by the call-off."""
    limit_s = attempt.start["comm_timeout_s"]
    told = {line["epoch"]: line for line in attempt.told("called_off")}
    for rank, lines in attempt.ranks.items():
        first: dict[int, Line] = {}
        for line in lines:
            if line.event == "abandoned" and line["epoch"] in told:
                first.setdefault(line["epoch"], line)
        for epoch, line in first.items() if attempt.same_clock(rank) else ():
            found.count("call-offs answered")
            late_s = line["t_s"] - told[epoch]["t_s"]
            if late_s > limit_s + slack_s:
                found.wrong(line, f"rank {rank} gives up {late_s:.3f} s after it was told, limit {limit_s:g} s")


def _steady(rank: int, entered: list[Line], lasts_s: float, found: Findings) -> None:
    """Files and threads beyond those of the groups: the last third of the epochs against the first.

    Each epoch entered within `lasts_s` of a count, an operation's timeout, may have left its own behind by then.
    """
    third = max(1, len(entered) // 3)
    recent = [sum(0 <= line["t_s"] - other["t_s"] <= lasts_s for other in entered) for line in entered]
    groups = [len(line["built"]) + len(line["kept"]) for line in entered]
    most = [max((name.count(",") for name in (*line["built"], *line["kept"])), default=0) for line in entered]
    owed = list(zip(entered, groups, most, strict=True))
    for what, limit, counts in (
        ("files", FILES, [line["fds"] - line["sockets"] - GROUP_FILES * g - peers for line, g, peers in owed]),
        ("threads", THREADS, [line["threads"] - GROUP_THREADS * g - peers for line, g, peers in owed]),
    ):
        before = max(counts[:third])
        if all(n - before > limit * r for n, r in zip(counts[-third:], recent[-third:], strict=True)):
            grown = min(counts[-third:]) - before
            found.wrong(entered[-1], f"rank {rank} has {grown} {what} more than {len(entered) - 1} epochs before")
