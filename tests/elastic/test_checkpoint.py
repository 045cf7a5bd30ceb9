"""Checkpoints: resumed on any layout, read by plain DCP, never trusted when damaged, survived when the disk is full."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader

from tests.tiny import STEPS, command, eventually, steps_done, tiny
from trainsys.cli.main import main
from trainsys.config import load
from trainsys.elastic.manifest import MANIFEST, _crc_of, find_checkpoint
from trainsys.models.geometry import tensors
from trainsys.models.init import init_box

HALF = 6
DP4 = ("parallel.dp=4", "parallel.pp=1", "parallel.zero=0")
PP4 = ("parallel.dp=1", "parallel.pp=4", "parallel.zero=0")
TP2 = ("parallel.dp=2", "parallel.pp=1", "parallel.tp=2")


def losses(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [line["loss_hex"] for line in lines]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with a checkpoint at 3, 6, 9 and 12."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["train", *tiny(folder, "checkpoint.every=3", "checkpoint.keep=4")]) == 0
    return folder


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """The same run with the checkpoints of 3 and 6 alone."""
    folder = tmp_path / "half"
    shutil.copytree(whole, folder)
    for step in (9, 12):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:08}")
    return folder


def test_resuming_gives_the_same_bits(whole: Path, half: Path) -> None:
    assert main(["train", *tiny(half)]) == 0
    assert losses(half) == losses(whole)


def test_a_chain_of_layouts(whole: Path, half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command("train", *tiny(half, *DP4, "checkpoint.every=1")) as running:
        assert eventually(lambda: (half / "checkpoints" / "step-00000008").exists(), 60)
        running.process.send_signal(signal.SIGTERM)
        assert running.finish()[0] == 0
        assert running.gone_within(2)
    assert HALF < steps_done(half) <= STEPS
    assert main(["train", *tiny(half, *PP4)]) == 0
    assert losses(half) == losses(whole)


def test_a_change_of_tp_keeps_the_loss_to_rounding(whole: Path, half: Path) -> None:
    assert main(["train", *tiny(half, *TP2)]) == 0
    ours, theirs = ([float.fromhex(x) for x in losses(folder)] for folder in (half, whole))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[:HALF] == theirs[:HALF]


def test_another_number_of_steps_is_said(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *tiny(half, "train.steps=8")]) == 0
    assert "train.steps=8 was 12 when that checkpoint was made" in capsys.readouterr().out
    assert main(["train", *tiny(half, "train.steps=8")]) == 0
    assert "all 8 steps are already in" in capsys.readouterr().out


def test_what_may_change_is_said(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *tiny(half, "optim.lr=0.002", "train.steps=7", "data.max_bytes=90000")]) == 0
    out = capsys.readouterr().out
    assert "changed since that checkpoint: data.max_bytes 100000 → 90000, optim.lr 0.001 → 0.002" in out


def test_keep_is_how_many_stay(whole: Path, half: Path) -> None:
    def names(folder: Path) -> list[str]:
        return sorted(p.name for p in (folder / "checkpoints").iterdir())

    assert names(whole) == [f"step-{step:08}" for step in (3, 6, 9, 12)]
    assert main(["train", *tiny(half, "checkpoint.every=2", "checkpoint.keep=2")]) == 0
    assert names(half) == ["step-00000010", "step-00000012"]


def test_starting_over_retires_the_old_history(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *tiny(half, "train.steps=2", "checkpoint.resume=false")]) == 0
    assert "starting over; the checkpoints in" in capsys.readouterr().out
    assert [p.name for p in (half / "checkpoints").glob("step-*") if p.suffix != ".old"] == ["step-00000002"]
    assert (half / "checkpoints" / "step-00000006.old").is_dir()
    assert len(losses(half)) == 2


def test_a_finished_run_says_so_as_json(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *tiny(whole), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["steps"], outcome["start_step"], outcome["stopped"]) == (12, 12, False)
    assert outcome["checkpoint"].endswith("step-00000012")


# -- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def shard(folder: Path) -> Path:
    return max(folder.glob("*.distcp"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: flip(shard(folder)), ".distcp is damaged"),
        (lambda folder: cut(shard(folder)), " bytes"),
        (lambda folder: shard(folder).unlink(), ".distcp is missing"),
        (lambda folder: flip(folder / ".metadata"), ".metadata is damaged"),
        (lambda folder: (folder / "trainsys.json").unlink(), "trainsys.json is missing"),
        (lambda folder: cut(folder / "trainsys.json"), "trainsys.json is damaged"),
        (lambda folder: flip(folder / "trainsys.json"), "trainsys.json is damaged"),
        (lambda folder: (folder / "trainsys.json").write_text("[]"), "trainsys.json is damaged"),
    ],
    ids=["bit", "cut", "missing", "metadata", "no manifest", "cut manifest", "manifest bit", "other manifest"],
)
def test_the_one_before_is_used_when_the_newest_is_damaged(
    damage: Callable[[Path], None], says: str, half: Path
) -> None:
    config = load(tiny(half))
    assert find_checkpoint(config).step == 6
    damage(half / "checkpoints" / "step-00000006")
    found = find_checkpoint(config)
    assert (found.step, Path(found.path).name) == (3, "step-00000003")
    (reason,) = found.rejected
    assert reason.startswith("step-00000006: ") and says in reason


def test_a_damaged_checkpoint_is_said_and_passed_over(
    whole: Path, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(shard(half / "checkpoints" / "step-00000006"))
    (half / "checkpoints" / ".step-00000005.partial").mkdir()
    (half / "checkpoints" / ".step-00000005.partial" / "__0_0.distcp").write_bytes(b"torn")
    assert main(["train", *tiny(half)]) == 0
    out = capsys.readouterr().out
    assert "is damaged; using step-00000003" in out and "at step 3" in out
    assert losses(half) == losses(whole)
    names = sorted(p.name for p in (half / "checkpoints").iterdir())  # the damaged one does not count as kept
    assert names == ["step-00000003", "step-00000006.damaged", "step-00000012"]


def test_nothing_but_damage_is_refused(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (half / "checkpoints").iterdir():
        flip(shard(folder))
    assert main(["train", *tiny(half)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "step-00000003" in error and "step-00000006" in error and "checkpoint.resume=false" in error
    assert len(losses(half)) == STEPS  # the record is untouched


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.dim=64", "model.dim=32, this run has 64"),
        ("model.tied=true", "model.tied=False, this run has True"),
        ("batch.global_size=24", "batch.global_size=8, this run has 24"),
        ("batch.microbatch_size=2", "batch.microbatch_size=1, this run has 2"),
        ("elastic.chunk=256", "elastic.chunk=512, this run has 256"),
        ("train.seed=1", "train.seed=0, this run has 1"),
        ("train.dtype=float64", "train.dtype=float32, this run has float64"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    override: str, says: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *tiny(half, override)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error and "checkpoint.resume=false" in error


def test_a_derived_size_that_is_written_out_is_the_same_model(half: Path) -> None:
    assert find_checkpoint(load(tiny(half, "model.num_kv_heads=4", "model.ffn_dim=96"))).step == 6


def test_a_checkpoint_from_before_a_key_existed_is_the_same_model(half: Path) -> None:
    path = half / "checkpoints" / "step-00000006" / MANIFEST
    manifest = json.loads(path.read_text())
    assert manifest.pop("crc") == _crc_of(manifest)
    del manifest["model"]["head_dim"]
    path.write_text(json.dumps({**manifest, "crc": _crc_of(manifest)}))
    assert find_checkpoint(load(tiny(half))).step == 6
    with pytest.raises(ValueError, match=r"made with model\.head_dim=8, this run has 6"):
        find_checkpoint(load(tiny(half, "model.head_dim=6")))


# -- for others ------------------------------------------------------------------------------------------------------


def test_plain_dcp_reads_every_tensor(whole: Path) -> None:
    config = load(tiny(whole))
    folder = whole / "checkpoints" / "step-00000012"
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    wanted = {f"{slot}.{t.name}": t for t in tensors(config.model) for slot in ("master", "exp_avg", "exp_avg_sq")}
    assert stored.keys() == wanted.keys()
    state = {name: torch.full(t.shape, torch.nan) for name, t in wanted.items()}
    dcp.load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    assert all(value.isfinite().all() for value in state.values())
    assert all((value >= 0).all() for name, value in state.items() if name.startswith("exp_avg_sq."))


def test_plain_dcp_reads_the_right_values(tmp_path: Path) -> None:
    """With a negligible learning rate every master is still its initial value, which depends on its coordinate."""
    frozen = ("optim.lr=1e-30", "optim.min_lr=0", "optim.weight_decay=0", "train.steps=1")
    for layout in ((), TP2):
        folder = tmp_path / str(len(layout))
        assert main(["train", *tiny(folder, *frozen, *layout)]) == 0
        config = load(tiny(folder))
        for tensor in tensors(config.model):
            state = {f"master.{tensor.name}": torch.zeros(tensor.shape)}
            dcp.load(state, storage_reader=FileSystemReader(folder / "checkpoints" / "step-00000001"), no_dist=True)
            initial = init_box(tensor, (0,) * len(tensor.shape), tensor.shape, config.train.seed, config.model)
            assert torch.equal(state[f"master.{tensor.name}"], initial.float().view(tensor.shape)), tensor.name


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk where one checkpoint of the tiny run fits, and two do not."""
    one = sum(f.stat().st_size for f in (whole / "checkpoints" / "step-00000012").iterdir())
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={one * 3 // 2}", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_training_outlives_a_full_disk(small_disk: Path, whole: Path, tmp_path: Path) -> None:
    run_dir, saves = tmp_path / "run", small_disk / "saves"
    with command("train", *tiny(run_dir, f"checkpoint.dir={saves}", "checkpoint.every=5")) as running:
        code, out, err = running.finish()
    assert losses(run_dir) == losses(whole)
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith(f"trainsys: checkpoint of step 12 not saved: no space left on the disk of {saves}")
    assert line.endswith(f"the last whole one is {saves / 'step-00000005'}")
    assert "checkpoint of step 10 not saved: no space left" in out
    assert [p.name for p in saves.iterdir() if p.name != ".lock"] == ["step-00000005"]
    assert find_checkpoint(load(tiny(run_dir, f"checkpoint.dir={saves}"))).step == 5


def test_a_full_disk_under_the_record_stops_nothing(small_disk: Path, tmp_path: Path) -> None:
    run_dir = small_disk / "run"
    run_dir.mkdir()
    left = shutil.disk_usage(small_disk).free - 20 * 1024
    (small_disk / "other").write_bytes(bytes(left))
    with command("train", *tiny(run_dir, f"checkpoint.dir={tmp_path}", "train.steps=24")) as running:
        code, out, err = running.finish()
    assert (code, err) == (0, "")
    assert "trained 24 steps" in out
    assert out.count("metrics.jsonl cannot be written: No space left on device; training goes on without it") == 1
    assert all(json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())


def test_a_limit_on_file_size_is_a_full_disk(whole: Path, tmp_path: Path) -> None:
    argv = ["bash", "-c", 'ulimit -f 100; exec "$@"', "-", sys.executable, "-m", "trainsys", "train"]
    done = subprocess.run([*argv, *tiny(tmp_path, "train.steps=3")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "not saved: a file grew over this process's limit" in done.stderr
    assert list((tmp_path / "checkpoints").iterdir()) == []
