"""The folder of a drill, which clears what the last one left there, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainsys.config import RunConfig
from trainsys.elastic.claim import claimed, is_drill, mark_drill
from trainsys.elastic.recorder import Recorder

_OUTPUTS = (
    "checkpoints", "faults", "history", "tensorboard", "undisturbed", "metrics.jsonl", "history.jsonl", "report.json",
    "report.md", "loss.png", "timeline.png", "trace.json", "epochs.png", "soak.json",
)  # fmt: skip


@contextmanager
def cleared(config: RunConfig) -> Iterator[None]:
    """Hold the run's folder for a new drill. Raises ValueError as `check_folder`, or if another process holds it."""
    check_folder(Path(config.run_dir))  # before anything is written there
    with claimed(config):
        clear_outputs(Path(config.run_dir))
        yield


def check_folder(run_dir: Path) -> None:
    """Raises ValueError for one that holds a training run, or anything else that no drill made."""
    if is_drill(run_dir):
        return
    if (run_dir / "checkpoints").exists() or (run_dir / "metrics.jsonl").exists():
        raise ValueError(f"run_dir={run_dir} holds a training run, which a drill would replace; set another run_dir")
    for name in _OUTPUTS:
        if (run_dir / name).exists():
            raise ValueError(
                f"run_dir={run_dir} holds {name}, which no drill made and one would replace; set another run_dir"
            )


def clear_outputs(run_dir: Path) -> None:
    """Remove what an earlier drill left. Raises ValueError as `check_folder`."""
    check_folder(run_dir)  # it may have changed while another process held it
    storms = [path for path in run_dir.glob("seed-*") if is_drill(path)]  # of a soak, that failed
    for path in [*(run_dir / name for name in _OUTPUTS), *storms]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    mark_drill(run_dir)


def interrupted(recorder: Recorder) -> KeyboardInterrupt:
    """A signal ended one of its runs before the last step."""
    steps = recorder.config.train.steps
    return KeyboardInterrupt(
        f"after step {recorder.next_step} of {steps}; another drill in {recorder.run_dir} begins anew"
    )
