"""Stragglers, hangs and slow links, injected into one long run: how many are located, how soon, and the false alarms.

Eight ranks in four nodes train with emulated computing: stages sleep, messages, reductions and processes are real.
Something strikes one rank or one link, case after case: computing that takes 1.3 to 5 times as long, messages that come
late, a rank that hangs in a forward, a message that never arrives. What the analyst says is read from the history. A
case is located if the right kind is named at the right place, and nothing else. Between cases, and for `--healthy`
steps after them, whatever is named is a false alarm. A rank that hangs is killed and a fresh one takes its place. What
else this machine does is part of the test.

    trainsys bench c4 [--cases 200] [--healthy 10000] [--seed 0] [--json]
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainsys.cli.arguments import Parser, at_least
from trainsys.comm.stamps import RECV, Stamps

RANKS, HANG_LIMIT_S, STEP_S = 8, 0.5, 0.03
KINDS = ("slow rank", "slow link", "computation hang", "communication hang")
_WARM, _LASTS, _AFTER = 14, 12, 10  # healthy steps before a case, steps of one, steps until it must be over
_HANG_STEPS = 400  # by then a hang is over and a fresh rank is there


@dataclass
class Case:
    """One injection.

    Attributes:
        place: (rank,), or (source, destination).
        said: what was found while it lasted, each a line of the history.
    """

    kind: str
    place: tuple[int, ...]
    much: float
    step: int
    said: list[dict[str, Any]] = field(default_factory=list)
    ended: int = -1

    @property
    def text(self) -> str:
        hangs = "hang" in self.kind
        place = ">".join(map(str, self.place))
        steps = f"{self.step}" if hangs else f"{self.step}-{self.step + _LASTS - 1}"
        return f"{place}:{'hang' if hangs else format(self.much, '.4f')}@{steps}"

    @property
    def right(self) -> list[dict[str, Any]]:
        return [f for f in self.said if f["kind"] == self.kind and tuple(f["place"]) == self.place]

    @property
    def located(self) -> bool:
        return bool(self.right) and len(self.right) == len(self.said)


class Driver:
    """Follows the manager's history, and injects one case after the other by a file that the ranks read."""

    def __init__(self, run_dir: Path, troubles: Path, cases: int, healthy: int, seed: int) -> None:
        self._run_dir, self._troubles, self._dice = run_dir, troubles, random.Random(seed)
        self._wanted, self._healthy_wanted = cases, healthy
        self.cases: list[Case] = []
        self.false_alarms: list[dict[str, Any]] = []
        self.healthy = self.steps = 0
        self.step_s: list[float] = []
        self._case: Case | None = None
        self._since = self._last_s = 0.0
        self._calm = 0  # steps since a change or a case
        self._left = healthy
        self._layout: dict[str, Any] = {}
        self._late: dict[str, Any] | None = None

    def follow(self, done: threading.Event) -> None:
        """Until all is done, or something here is wrong; then ask the run to stop."""
        while not (paths := list(self._run_dir.glob("history/manager-*.jsonl"))):
            if done.wait(0.05):
                return
        try:
            with paths[0].open() as lines:
                text = ""
                while not done.is_set():
                    text += lines.readline()
                    if not text.endswith("\n"):  # nothing new, or half a line
                        time.sleep(0.004)
                        continue
                    if self._take(json.loads(text)):
                        return
                    text = ""
        finally:
            if not done.is_set():
                os.kill(os.getpid(), signal.SIGINT)

    def _take(self, line: dict[str, Any]) -> bool:
        event = line["event"]
        if event == "opened":
            self._layout = line["layout"]
        elif event == "found" and not line["over"]:
            (self._case.said if self._case else self.false_alarms).append(line)
        elif event == "switched":
            self._calm = 0
        elif event == "committed":
            return self._step(line["step"], line["t_s"])
        return False

    def _step(self, step: int, now_s: float) -> bool:
        self.steps, self._calm = step, self._calm + 1
        if self._calm > 1:
            self.step_s.append(now_s - self._last_s)
        self._last_s = now_s
        if self._case is not None:
            self._close(step)
            return False
        self.healthy += 1
        if len(self.cases) < self._wanted:
            if self._calm >= _WARM and len(self._ranks()) == RANKS:
                self._inject(step)
            return False
        self._left -= 1
        return self._left <= 0

    def _close(self, step: int) -> None:
        """Whether the case is over, and its traces are."""
        case = self._case
        assert case is not None
        over = step >= case.step + _LASTS + _AFTER
        if "hang" in case.kind:
            whole = len(self._ranks()) == RANKS and self._calm > 3
            over = step > case.step + 3 and ((bool(case.right) and whole) or step > case.step + _HANG_STEPS)
        if over:
            self._case, self._calm = None, 0

    def _inject(self, step: int) -> None:
        kind = KINDS[(0, 1, 0, 1, 2, 0, 1, 0, 1, 3)[len(self.cases) % 10]]
        if "link" in kind or kind == "communication hang":
            place: tuple[int, ...] = self._dice.choice(self._links())
            much = self._dice.uniform(0.2, 1.0) * STEP_S
        else:
            place, much = (self._dice.choice(self._ranks()),), self._dice.choice((1.3, 1.5, 2.0, 3.0, 5.0))
        self._case = Case(kind, place, much, step + 3)
        self.cases.append(self._case)
        fresh = self._troubles.with_suffix(".new")
        fresh.write_text(self._case.text)
        fresh.replace(self._troubles)

    def _ranks(self) -> list[int]:
        return sorted(r for stage in self._layout["stages"] for team in stage["teams"] for r in team)

    def _links(self) -> list[tuple[int, int]]:
        """Pairs that exchange messages in every step: replicas of a stage, and neighbours in a pipeline."""
        stages = [[team[0] for team in stage["teams"]] for stage in self._layout["stages"]]
        pairs = [(a, b) for own in stages for a in own for b in own if a != b]
        for here, there in pairwise(stages):
            if len(here) == len(there):
                pairs += [p for a, b in zip(here, there, strict=True) for p in ((a, b), (b, a))]
        return pairs


def run(folder: Path, cases: int, healthy: int, seed: int) -> Driver:
    """Train, inject, and end when all is done."""
    from trainsys.cli.prepare import prepared
    from trainsys.elastic.agent import run_local
    from trainsys.elastic.recorder import Recorder
    from trainsys.planner.timeline import timeline

    overrides = [
        "model.vocab_size=256", "model.dim=32", "model.num_layers=4", "model.num_heads=4", "model.max_seq_len=32",
        "batch.seq_len=32", "batch.global_size=16", "batch.microbatch_size=1", "cluster.nodes=4",
        "cluster.ranks_per_node=2", "cluster.device.tflops=0.01", "parallel.dp=4", "parallel.pp=2", "parallel.zero=1",
        "train.emulate=true", f"train.steps={10**6}", "checkpoint.every=0", f"run_dir={folder}",
        f"train.emulate_slow=file:{folder}/troubles", f"elastic.hang_limit_s={HANG_LIMIT_S}", "elastic.spare_delay_s=0",
        "elastic.straggler_factor=1.2", "elastic.heartbeat_limit_s=3",
    ]  # fmt: skip
    planned_s = timeline(prepared(overrides)).run.step_s
    config = prepared([*overrides, f"train.emulate_scale={STEP_S / planned_s}"])
    driver, done = Driver(folder, folder / "troubles", cases, healthy, seed), threading.Event()
    thread = threading.Thread(target=driver.follow, args=(done,), daemon=True)
    with Recorder(config, config.run_dir, None) as recorder:
        thread.start()
        try:
            run_local(config, recorder)
        finally:
            done.set()
            thread.join()
    return driver


def cost(repeat: int = 20000) -> dict[str, float]:
    """Microseconds of stamping: an operation from begin to end with its wait, an action, a message in the summary.

    The least of five rounds: others may use the machine.
    """
    rounds = [_round(repeat // 5) for _ in range(5)]
    return {name: min(r[name] for r in rounds) for name in rounds[0]}


def _round(repeat: int) -> dict[str, float]:
    stamps = Stamps()
    group = stamps.know("e0/0,1", (0, 1))
    start = time.perf_counter()
    for tag in range(repeat):
        number = stamps.begin(RECV, group, 1, tag % 64, 4096)
        with stamps.waiting(number):
            stamps.end(number)
    operation = (time.perf_counter() - start) / repeat
    start = time.perf_counter()
    for _ in range(repeat):
        stamps.enter("F")
        stamps.computed("F", 0.1)
    action = (time.perf_counter() - start) / repeat
    start = time.perf_counter()
    stamps.take_step()
    summary = (time.perf_counter() - start) / min(repeat, 8192)
    return {"operation_us": 1e6 * operation, "action_us": 1e6 * action, "summary_us": 1e6 * summary}


def summary(driver: Driver) -> dict[str, Any]:
    """The numbers."""
    found: dict[str, Any] = {"cases": len(driver.cases), "steps": driver.steps, "healthy_steps": driver.healthy}
    found["located"] = sum(c.located for c in driver.cases) / max(1, len(driver.cases))
    for kind in KINDS:
        own = [c for c in driver.cases if c.kind == kind]
        found[kind] = {
            "cases": len(own), "located": sum(c.located for c in own),
            "also_wrong": sum(bool(c.right) and not c.located for c in own),
        }  # fmt: skip
        if "hang" in kind:
            over = [f["lasted_s"] - HANG_LIMIT_S for c in own for f in c.right[:1]]
            found[kind] |= {"over_limit_s": _spread(over)}
        else:
            found[kind] |= {"steps_until_named": _spread([f["step"] - c.step + 1 for c in own for f in c.right[:1]])}
    found["missed"] = [{"case": c.text, "kind": c.kind, "said": [f["says"] for f in c.said]}
                       for c in driver.cases if not c.located]  # fmt: skip
    found["false_alarms"] = len(driver.false_alarms)
    found["false_alarms_said"] = [f"step {f['step']}: {f['says']}" for f in driver.false_alarms]
    found["false_alarms_per_10000"] = 1e4 * len(driver.false_alarms) / max(1, driver.healthy)
    found["step_s"] = _spread(driver.step_s)
    return found


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"median": statistics.median(values), "worst": max(values)} if values else None


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench c4", __doc__.splitlines()[0], "  trainsys bench c4 --cases 40 --healthy 1000")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--healthy", type=int, default=10000, help="steps after the last case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    at_least("--cases", args.cases)
    at_least("--healthy", args.healthy, 0)
    started = time.monotonic()
    spent = cost()
    of_step = (200 * (spent["operation_us"] + spent["summary_us"]) + 64 * spent["action_us"]) / 1e5
    with tempfile.TemporaryDirectory(prefix="trainsys-c4-") as folder:
        found = summary(run(Path(folder), args.cases, args.healthy, args.seed))
    found |= {**spent, "overhead_of_100_ms": of_step, "seconds": time.monotonic() - started}
    print(json.dumps(found)) if args.json else show(found)
    whole = found["cases"] == args.cases and found["healthy_steps"] >= args.healthy
    return 0 if whole and found["located"] >= 0.99 and found["false_alarms_per_10000"] <= 1 else 1


def show(found: dict[str, Any]) -> None:
    for kind in KINDS:
        row = found[kind]
        when = row.get("over_limit_s") or row.get("steps_until_named") or {"median": 0.0, "worst": 0.0}
        what = "s over the limit" if "hang" in kind else "steps until named"
        print(f"{kind:20} {row['located']:3d} of {row['cases']:3d} located, {what}: median {when['median']:.3g}, "
              f"worst {when['worst']:.3g}")  # fmt: skip
    for missed in found["missed"]:
        print(f"missed: {missed['kind']} {missed['case']}: {'; '.join(missed['said']) or 'nothing said'}")
    for alarm in found["false_alarms_said"]:
        print(f"false alarm: {alarm}")
    steps = found["step_s"] or {"median": 0.0, "worst": 0.0}
    print(
        f"located {100 * found['located']:.1f} % of {found['cases']}; {found['false_alarms']} false alarms in "
        f"{found['healthy_steps']} healthy steps ({found['false_alarms_per_10000']:.2f} per 10,000); step "
        f"{1e3 * steps['median']:.0f} ms; {found['seconds']:.0f} s in all"
    )
    print(
        f"stamping: {found['operation_us']:.2f} µs per operation, {found['action_us']:.2f} per action, "
        f"{found['summary_us']:.2f} per operation told: {100 * found['overhead_of_100_ms']:.2f} % of a step of 100 ms "
        "with 200 operations and 64 actions"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
