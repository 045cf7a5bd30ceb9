"""The same tiny job under trainsys, torchft, torchrun and Ray Train: one worker is killed, or frozen, in mid-step.

Four workers, 1.3 million parameters, 8 sequences per step. A worker gets SIGKILL (SIGSTOP with --stop) a third of a
step after one has counted. Recovery lasts until the next step counts. Lost steps are those that counted and were done
again, lost samples those of the next steps that no worker trained; both from the workers' own logs. `overhead` is the
median step against plain torch (all-reduce, no fault tolerance) in the same run, with what the system does to survive:
a quorum in every step for torchft, a checkpoint in RAM after every step for torchrun, after every tenth for Ray, whose
report of one takes two seconds.

torchft is measured as its README starts it, and tuned (heartbeat and join 0.3 s, tick 20 ms). Peers that are not
installed are left out with a line that says how to get them; none is a dependency.

    trainsys bench recovery [--systems trainsys,torchft] [--kills 3] [--stop] [--peers-path DIR] [--out recovery.png]
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainsys.cli.arguments import Parser, at_least

ROOT = Path(__file__).parents[1]
WORKERS, BATCH = 4, 8  # of configs/run/tiny.yaml
WARM, AFTER = 24, 12  # steps before and after the fault
LIMIT_S = 150.0
LATE_S = 0.05  # so much later some worker may count the step that another has counted before the fault
RESTARTS = {"torchrun", "ray"}  # all workers, when one dies
MODULE = "benchmarks._recovery_worker"
MARK = "TRAINSYS_BENCH_RECOVERY"
NEEDS = {"trainsys": "", "plain": "", "torchrun": "", "torchft": "torchft", "torchft tuned": "torchft",
         "ray": "pyarrow"}  # fmt: skip
INSTALL = {
    "torchft": "pip install --no-deps -t DIR torchft; pip install -t DIR opentelemetry-sdk "
    "opentelemetry-exporter-otlp-proto-http",
    "pyarrow": "pip install --no-deps -t DIR pyarrow pandas tensorboardX",
}


@dataclass(frozen=True)
class Step:
    """One that counted, for one worker."""

    step: int
    time: float
    first: int
    count: int
    pid: int


@dataclass
class System:
    """One system at work, its processes in sessions of their own."""

    name: str
    folder: Path
    env: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Every process of it."""
        python, worker = sys.executable, [sys.executable, "-m", MODULE]
        steps = str(100_000)
        if self.name == "trainsys":
            self._run([
                python, "-m", "trainsys", "train", "configs/run/tiny.yaml", "parallel.dp=4", "parallel.pp=1",
                "parallel.zero=0",
                f"train.steps={steps}", "checkpoint.every=0", f"run_dir={self.folder}/run", "train.log_every=100000",
            ])  # fmt: skip
        elif self.name == "torchrun":
            self._run([
                python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORKERS),
                "--max-restarts", "3", "-m", MODULE, "torchrun", "0", str(WORKERS), steps, str(self.folder),
            ])  # fmt: skip
        elif self.name == "ray":
            self._run([*worker, "ray", "0", str(WORKERS), steps, str(self.folder)])
        else:
            if self.name.startswith("torchft"):
                self._light()
            for i in range(WORKERS):
                self._run([*worker, self.name.split()[0], str(i), str(WORKERS), steps, str(self.folder)])

    def _light(self) -> None:
        """torchft's lighthouse, with its README's settings or tuned."""
        tuned = self.name == "torchft tuned"
        options = "min_replicas=1, join_timeout_ms=10000"
        if tuned:
            options = "min_replicas=1, join_timeout_ms=300, quorum_tick_ms=20, heartbeat_timeout_ms=300"
        where = self.folder / "lighthouse"
        text = (
            "import time, pathlib; from torchft.coordination import LighthouseServer\n"
            f"server = LighthouseServer(bind='127.0.0.1:0', {options})\n"
            f"pathlib.Path({str(where)!r}).write_text(server.address())\ntime.sleep(1e6)"
        )
        self._run([sys.executable, "-c", text])
        until = time.monotonic() + 30
        while not (where.exists() and where.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        self.env |= {"TORCHFT_LIGHTHOUSE": where.read_text(), "RECOVERY_TIMEOUT_S": "5"}

    def _run(self, command: list[str]) -> None:
        stderr = (self.folder / "stderr.txt").open("ab")
        self.processes.append(
            subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=stderr, stderr=stderr, start_new_session=True)
        )

    def steps(self) -> list[Step]:
        """All that counted until now, in order of time."""
        if self.name == "trainsys":
            return _of_trainsys(self.folder / "run")
        found = []
        for path in self.folder.glob("worker-*.log"):
            for line in path.read_text().splitlines():
                with suppress(ValueError):  # half written
                    step, at, first, count, _, pid = line.split()
                    found.append(Step(int(step), float(at), int(first), int(count), int(pid)))
        return sorted(found, key=lambda s: s.time)

    def victim(self) -> int:
        """Process of the last worker."""
        if self.name == "trainsys":
            (path,) = (self.folder / "run" / "history").glob(f"rank-{WORKERS - 1}-*.jsonl")
            return int(json.loads(path.read_text().splitlines()[0])["pid"])
        return max(self.steps(), key=lambda s: (s.first % BATCH, s.time)).pid

    def close(self) -> None:
        """End whatever is left, with all that it started, in whatever session."""
        mark = f"{MARK}={self.folder}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
        for process in self.processes:
            process.wait()


def _of_trainsys(run_dir: Path) -> list[Step]:
    found = []
    for path in (run_dir / "history").glob("manager-*.jsonl"):
        for text in path.read_bytes().split(b"\n")[:-1]:
            if b'"committed"' in text:
                line = json.loads(text)
                found += [Step(line["step"], line["t_s"], first, count, 0) for first, count in line["samples"]]
    return sorted(found, key=lambda s: s.time)


def measure(name: str, env: dict[str, str], number: int) -> dict[str, Any]:
    """One fault in one system. Raises TimeoutError where it never recovers."""
    folder = Path(tempfile.mkdtemp(prefix="recovery-", dir="/dev/shm"))
    system = System(name, folder, {**env, MARK: str(folder)})
    try:
        system.start()
        before = _wait(system, lambda steps: len({s.step for s in steps}) > WARM, "does not start")
        step_s = _median(before)
        if name == "plain":
            return {"step_s": step_s}
        victim, last = system.victim(), max(s.step for s in before)
        old = {s.pid for s in before} if name in RESTARTS else {victim}
        _wait(system, lambda steps: max(s.step for s in steps) > last, "stopped by itself")
        time.sleep(step_s / 3)
        struck = time.monotonic()
        os.kill(victim, number)
        done = _wait(
            system, lambda steps: _recovered(steps, struck, step_s, old) is not None, "never recovered", struck
        )  # fmt: skip
        recovered = _recovered(done, struck, step_s, old)
        assert recovered is not None
        end = recovered.step + AFTER
        done = _wait(system, lambda steps: max(s.step for s in steps) > end, "stopped after it recovered")
        return {"step_s": step_s, "recover_s": recovered.time - struck, **_losses(done, struck, end)}
    finally:
        system.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(system: System, ready: Any, what: str, since: float = 0.0) -> list[Step]:
    until = (since or time.monotonic()) + LIMIT_S
    while time.monotonic() < until:
        steps = system.steps()
        if steps and ready(steps):
            return steps
        time.sleep(0.01)
    tail = (system.folder / "stderr.txt").read_text(errors="replace").splitlines()[-1:]
    raise TimeoutError(f"{what} within {LIMIT_S:g} s: {' '.join(tail)[:150]}")


def _recovered(steps: Sequence[Step], struck: float, step_s: float, old: set[int]) -> Step | None:
    """The first step that counted after the fault, for a process that is not `old`; what came at once was under way."""
    return next((s for s in steps if s.time > struck + step_s / 6 and s.pid not in old), None)


def _losses(steps: Sequence[Step], struck: float, end: int) -> dict[str, Any]:
    """Steps that counted twice, and samples of the steps up to `end` that nobody trained."""
    before = {s.step for s in steps if s.time <= struck}
    again = {s.step for s in steps if s.time > struck + LATE_S} & before
    expected = set(range((max(before) + 1) * BATCH, (end + 1) * BATCH))
    trained = {sample for s in steps for sample in range(s.first, s.first + s.count)}
    return {"steps_lost": len(again), "samples_lost": len(expected - trained)}


def _median(steps: Sequence[Step]) -> float:
    times = sorted({s.step: s.time for s in steps}.items())
    return statistics.median(b[1] - a[1] for a, b in pairwise(times[3:]))


def draw(rows: Sequence[dict[str, Any]], path: Path, what: str) -> None:
    """Seconds to recover, on a logarithmic scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.get("recover_s")]
    figure = Figure(figsize=(8, 0.55 * len(shown) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [row["system"] for row in shown]
    colours = ["#1F3A68" if name == "trainsys" else "#B8C4D6" for name in names]
    bars = axes.barh(names, [row["recover_s"] for row in shown], color=colours)
    axes.bar_label(bars, [f"{row['recover_s']:.2f} s" for row in shown], padding=4, fontsize=9)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel(f"seconds from {what} to the next step that counts (median)")
    axes.set_title(f"Four workers, one gets {what} in mid-step", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench recovery", __doc__.splitlines()[0], "  trainsys bench recovery --kills 3 --out recovery.png")
    parser.add_argument("--systems", default=",".join(NEEDS), help=f"of {', '.join(NEEDS)}")
    parser.add_argument("--kills", type=int, default=3, help="per system")
    parser.add_argument("--stop", action="store_true", help="SIGSTOP instead of SIGKILL")
    parser.add_argument("--peers-path", default="", help="folder with peers installed by pip install -t")
    parser.add_argument("--out", type=Path, help="draw the times")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    at_least("--kills", args.kills)
    names = [name.strip() for name in args.systems.split(",")]
    if unknown := [name for name in names if name not in NEEDS]:
        raise ValueError(f"--systems {unknown[0]} is not known; they are {', '.join(NEEDS)}")
    path = os.pathsep.join(filter(None, [str(ROOT), args.peers_path, os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
           "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "RAY_TRAIN_V2_ENABLED": "1"}  # fmt: skip
    if args.peers_path:
        sys.path.append(args.peers_path)
    what, number = ("SIGSTOP", signal.SIGSTOP) if args.stop else ("SIGKILL", signal.SIGKILL)
    rows = []
    for name in dict.fromkeys(["plain", *names]):
        if NEEDS[name] and importlib.util.find_spec(NEEDS[name]) is None:
            print(f"{name}: left out; {INSTALL[NEEDS[name]]}, and --peers-path DIR", file=sys.stderr)
            continue
        rows.append(_row(name, env, args.kills, number, rows[0]["step_s"] if rows else None))
        if not args.json:
            print(_line(rows[-1]), flush=True)
    if args.json:
        print(json.dumps({"fault": what, "rows": rows}))
    if args.out:
        draw(rows, args.out, what)
    return 0 if not any(row.get("failed") and row["system"] == "trainsys" for row in rows) else 1


def _row(name: str, env: dict[str, str], kills: int, number: int, plain_s: float | None) -> dict[str, Any]:
    runs, failed = [], []
    for _ in range(kills if name != "plain" else 1):
        try:
            runs.append(measure(name, env, number))
        except TimeoutError as error:
            failed.append(str(error))
    row: dict[str, Any] = {"system": name, "runs": runs, "failed": failed}
    for key in ("step_s", "recover_s", "steps_lost", "samples_lost"):
        values = [run[key] for run in runs if key in run]
        row[key] = statistics.median(values) if values else None
    row["overhead"] = row["step_s"] / plain_s - 1 if plain_s and row["step_s"] else None
    return row


def _line(row: dict[str, Any]) -> str:
    parts = [f"{row['system']:14}"]
    if row["step_s"]:
        parts.append(f"step {row['step_s'] * 1000:4.0f} ms")
    if row["overhead"] is not None:
        parts.append(f"overhead {row['overhead']:+.0%}")
    if row["recover_s"] is not None:
        parts.append(f"recovered after {row['recover_s']:6.2f} s")
        parts.append(f"steps lost {row['steps_lost']:g}  samples lost {row['samples_lost']:g}")
    return "  ".join(parts + row["failed"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
