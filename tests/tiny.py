"""The smallest run that still has layers, heads and batches to split, and processes as the user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = "TRAINSYS_TEST_MARK"
STEPS = 12
TINY = (
    "model.vocab_size=256", "model.dim=32", "model.num_layers=4", "model.num_heads=4", "model.max_seq_len=32",
    "batch.seq_len=32", "batch.global_size=8", "batch.microbatch_size=1", "data.tokenizer=bytes",
    "data.max_bytes=100000", "cluster.shared_cores=true", "cluster.device.tflops=0.05", "elastic.chunk=512",
    "elastic.heartbeat_limit_s=5", "optim.warmup_steps=4", f"train.steps={STEPS}", "parallel.dp=2", "parallel.pp=2",
    "parallel.zero=1",
)  # fmt: skip


def tiny(run_dir: Path, *overrides: str) -> list[str]:
    """Arguments of `trainsys.config.load` and of every verb: four ranks, dp2·pp2 zero1, 12 steps."""
    return [*TINY, f"run_dir={run_dir}", *overrides]


class Command:
    """A `trainsys` process whose descendants can be found, even those whose parent is gone."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.mark = uuid.uuid4().hex
        environment = {**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainsys", *argv], cwd=ROOT, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def living(self) -> list[int]:
        """Processes of this command, itself included, that are not zombies."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdecimal() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    found += [int(folder.name)] if state != "Z" else []
            except OSError:
                continue  # ended while we looked, or somebody else's
        return found

    def ranks(self) -> list[int]:
        """Its rank processes, by their names."""
        return [pid for pid in self.living() if _name(pid).startswith("rank-")]

    def gone_within(self, seconds: float) -> bool:
        """Whether all of them end in time."""
        return eventually(lambda: not self.living(), seconds)

    def finish(self, timeout_s: float = 110) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err


@contextmanager
def command(*argv: str) -> Iterator[Command]:
    """Run `trainsys ARGV…`; nothing of it is left afterwards."""
    running = Command(argv)
    try:
        yield running
    finally:
        for pid in running.living():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        running.process.communicate()


def running_now(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def eventually(condition: object, seconds: float) -> bool:
    """Whether `condition()` comes true in time."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def steps_done(run_dir: Path) -> int:
    """Lines of metrics.jsonl so far."""
    try:
        return (run_dir / "metrics.jsonl").read_text().count("\n")
    except OSError:
        return 0
