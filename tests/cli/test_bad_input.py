"""Bad input, from the user's end: one line that names the number and the knob, exit code 2, nothing written."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import command, tiny
from trainsys.bounds import BOUNDS
from trainsys.cli.main import main
from trainsys.config import RunConfig

ALL = ("train", "drill", "plan", "simulate")
RUN = ("train", "drill")
MESH = ("train", "drill", "simulate")  # verbs that take the layout as it is given

CASES: list[tuple[tuple[str, ...], list[str], list[str]]] = [
    # keys and types
    (ALL, ["train.stpes=3"], ["train.stpes", "did you mean train.steps?"]),
    (ALL, ["trian.steps=3"], ["trian", "did you mean train"]),
    (ALL, ["steps=3"], ["steps", "did you mean train.steps?"]),
    (ALL, ["train.steps=many"], ["train.steps", "many"]),
    (ALL, ["train.steps=[3"], ["train.steps=[3"]),
    (("plan",), ["cluster.other_devices={{nodes: 1}}"], ["cluster.other_devices={'nodes': 1} must be a list"]),
    (("plan",), ["parallel.devices={{a: 1}}"], ["parallel.devices={'a': 1} must be a list"]),
    (("train",), ["parallel.stage_layers={{a: 1}}"], ["parallel.stage_layers={'a': 1} must be a list"]),
    (("train",), ["parallel.stage_replicas=[[1]]"], ["parallel.stage_replicas=[[1]] must be whole numbers"]),
    (("train",), ["cluster.links.gbps={{a: 1}}"], ["cluster.links.gbps={'a': 1} must be a list"]),
    (ALL, ["train=3"], ["train is a section", "train.steps="]),
    (ALL, ["=5"], ["no key before its '='"]),
    (ALL, ["/"], ["/ is a folder", "configs/run/tiny.yaml"]),
    (RUN, ["train.init_from=hf:/no/such/folder"], ["train.init_from: /no/such/folder", "config.json"]),
    (ALL, ["train.dtype=float16"], ["train.dtype", "float16"]),
    (ALL, ["parallel.recompute=some"], ["parallel.recompute", "some"]),
    (ALL, ["no-such.yaml"], ["no-such.yaml does not exist"]),
    # numbers that no run can use
    (ALL, ["train.steps=0"], ["train.steps=0", "at least 1"]),
    (ALL, ["train.seed=-1"], ["train.seed=-1"]),
    (ALL, ["train.log_every=0"], ["train.log_every=0"]),
    (ALL, ["optim.lr=-1"], ["optim.lr=-1", "positive"]),
    (ALL, ["optim.lr=nan"], ["optim.lr=nan"]),
    (ALL, ["optim.lr=inf"], ["optim.lr=inf"]),
    (ALL, ["optim.lr=1e-5", "optim.min_lr=1e-4"], ["optim.min_lr=0.0001", "optim.lr=1e-05"]),
    (ALL, ["optim.betas=[0.9,1.0]"], ["optim.betas=[0.9, 1.0]"]),
    (ALL, ["optim.clip=-1"], ["optim.clip=-1"]),
    (ALL, ["optim.betas=[0.9]"], ["optim.betas=[0.9]"]),
    (ALL, ["train.steps=99999999999999999999"], ["train.steps=99999999999999999999 is too large"]),
    (RUN, ["run_dir=/proc/x"], ["run_dir=/proc/x", "set another run_dir"]),
    (("train",), ["checkpoint.dir=/proc/x"], ["checkpoint.dir=/proc/x", "set another checkpoint.dir"]),
    (ALL, ["elastic.heartbeat_limit_s=0"], ["elastic.heartbeat_limit_s=0", "0.05"]),
    (ALL, ["elastic.comm_timeout_s=-1"], ["elastic.comm_timeout_s=-1"]),
    (ALL, ["elastic.comm_timeout_s=1e300"], ["elastic.comm_timeout_s=1e+300", "0.05 to 1e+06 s"]),
    (ALL, ["elastic.comm_timeout_s=1e-300"], ["elastic.comm_timeout_s=1e-300", "0.05 to 1e+06 s"]),
    (ALL, ["elastic.stall_limit_s=1e300"], ["elastic.stall_limit_s=1e+300", "0.05 to 1e+06 s"]),
    (ALL, ["elastic.heartbeat_limit_s=1e300"], ["elastic.heartbeat_limit_s=1e+300", "0.05 to 1e+06 s"]),
    (ALL, ["elastic.hang_limit_s=1e-300"], ["elastic.hang_limit_s=1e-300", "0.05 to 1e+06 s, or be 0 for none"]),
    (ALL, ["elastic.spare_delay_s=1e300"], ["elastic.spare_delay_s=1e+300", "-1 for never"]),
    (ALL, ["elastic.chunk=0"], ["elastic.chunk=0"]),
    (ALL, ["elastic.port=70000"], ["elastic.port=70000", "65535"]),
    (ALL, ["checkpoint.keep=0"], ["checkpoint.keep=0"]),
    (ALL, ["checkpoint.every=-5"], ["checkpoint.every=-5"]),
    (ALL, ["cluster.nodes=0"], ["cluster.nodes=0"]),
    (ALL, ["cluster.ranks_per_node=-2"], ["cluster.ranks_per_node=-2"]),
    (ALL, ["cluster.device.memory_gib=0"], ["cluster.device.memory_gib=0"]),
    (ALL, ["cluster.device.efficiency=1.5"], ["cluster.device.efficiency=1.5"]),
    (ALL, ["cluster.intra_node.gbps=0"], ["cluster.intra_node.gbps=0"]),
    (("plan",), ["cluster.inter_node.gbps=1e-9"], ["cluster.inter_node.gbps=1e-09", "at least 1e-06 GB/s"]),
    (("plan",), ["cluster.links.gbps=[[0,1],[1e-9,0]]"], ["cluster.links.gbps: from 1 to 0", "1e-06 GB/s or more"]),
    (("plan",), ["cluster.node_mtbf_hours=1e-4"], ["cluster.node_mtbf_hours=0.0001", "0.001 h"]),
    (("plan",), ["model.num_layers=1000000000"], ["model.num_layers=1000000000 must be at most 10000"]),
    (ALL, ["cluster.device.backend=mpi"], ["cluster.device.backend=mpi", "gloo, nccl"]),
    (ALL, ["batch.microbatch_size=0"], ["batch.microbatch_size=0", "at least 1"]),
    (ALL, ["batch.global_size=-4"], ["batch.global_size=-4"]),
    (ALL, ["model.dropout=1"], ["model.dropout=1"]),
    (ALL, ["model.vocab_size=0"], ["model.vocab_size=0"]),
    (ALL, ["model.family=bert"], ["bert", "gpt2, linear_llama, llama"]),
    (ALL, ["model.window=-1"], ["model.window=-1"]),
    (("plan",), ["parallel.cp=4", "parallel.cp_method=foo"], ["parallel.cp_method=foo", "auto, ring, tasp"]),
    (("plan",), ["parallel.cp_merge=x"], ["parallel.cp_merge", "canonical"]),
    (("drill",), ["faults.schedule=drain@3"], ["drain@3", "drain@"]),
    (ALL, ["run_dir="], ["run_dir"]),
    (ALL, ["faults.kills=-1"], ["faults.kills=-1"]),
    # model, batch and layout
    (ALL, ["model.num_heads=5"], ["dim=32", "num_heads=5", "num_heads=1, 2, 4 or 8"]),
    (ALL, ["batch.seq_len=64"], ["batch.seq_len=64", "model.max_seq_len=32"]),
    (ALL, ["batch.microbatch_size=5"], ["batch.global_size=8", "microbatch_size=5", "5 or 10"]),
    (RUN, ["parallel.dp=3"], ["dp*tp*pp=6", "4 ranks", "parallel.dp=2"]),
    (MESH, ["parallel.dp=0"], ["parallel.dp=0"]),
    (MESH, ["parallel.zero=4"], ["parallel.zero=4", "0, 1, 2, 3"]),
    (MESH, ["parallel.order=tp,pp"], ["parallel.order=tp,pp", "tp,cp,pp,dp"]),
    (MESH, ["parallel.reduction=fast", "parallel.zero=2"], ["parallel.reduction=fast", "parallel.reduction=canonical"]),
    (MESH, ["model.experts_per_token=-7"], ["experts_per_token=-7", "mixtral", "drop model.experts_per_token"]),
    (MESH, ["parallel.schedule=foo", "parallel.vp=2"], ["parallel.schedule=foo", "interleaved"]),
    (MESH, ["parallel.vp=2"], ["parallel.vp=2", "1f1b", "parallel.schedule=interleaved"]),
    (MESH, ["parallel.vp=3", "parallel.schedule=interleaved"], ["pp*vp=6", "num_layers=4", "parallel.vp=2"]),
    (MESH, ["parallel.schedule=interleaved"], ["parallel.vp=1", "parallel.schedule=1f1b"]),
    (MESH, ["parallel.cp=0"], ["parallel.cp=0"]),
    (MESH, ["parallel.schedule=zigzag"], ["parallel.schedule=zigzag", "1f1b"]),
    (MESH, ["model.num_heads=2", "parallel.dp=1", "parallel.tp=4", "parallel.pp=1"],
     ["num_heads=2", "tp=4", "set parallel.tp=1 or 2"]),
    (MESH, ["model.vocab_size=258", "parallel.dp=1", "parallel.tp=4", "parallel.pp=1"],
     ["vocab_size=258", "tp=4", "256 or 260"]),
    (MESH, ["model.num_layers=3", "parallel.dp=1", "parallel.pp=4"], ["num_layers=3", "pp=4", "between 1 and 3"]),
    (MESH, ["parallel.stage_layers=[1,2]"], ["stage_layers=(1, 2)", "num_layers=4"]),
    (MESH, ["parallel.dp=6", "parallel.pp=1", "cluster.nodes=3"],
     ["batch.global_size=8", "batch.microbatch_size·parallel.dp=1·6"]),
    (MESH, ["parallel.dp=16", "parallel.pp=1", "cluster.nodes=8"], ["8 microbatches", "parallel.dp=16"]),
    (("train", "drill", "plan"), ["cluster.device.memory_gib=0.0001"], ["GiB", "cluster.device.memory_gib=0.0001"]),
    (RUN, ["elastic.min_ranks=5"], ["elastic.min_ranks=5", "4 ranks"]),
    # faults
    (("drill",), ["faults.schedule=kill@3:9"], ["kill@3:9", "ranks are 0 to 3"]),
    (("drill",), ["faults.schedule=kill@3:1:lunch"], ["lunch", "backward"]),
    (("drill",), ["faults.schedule=kill@12:1"], ["step 12", "train.steps=12"]),
    (("drill",), ["faults.schedule=kill@-1:1"], ["kill@-1:1"]),
    (("drill",), ["faults.schedule=explode@3:1"], ["explode@3:1"]),
    (("drill",), ["faults.schedule=kill@3:1:send", "parallel.dp=4", "parallel.pp=1"], ["parallel.pp=1"]),
    (("drill",), ["faults.kills=4"], ["faults.kills=4"]),
    (("drill",), ["faults.kills=1", "faults.schedule=kill@3:1"], ["faults.kills", "faults.schedule"]),
    (("drill",), ["faults.schedule=,"], ["faults.schedule=, has an empty item"]),
    (("drill",), ["faults.schedule=kill@3:manager:forward"], ["no phase of the manager's", "collect, tell"]),
    (("drill",), ["--hours=-1"], ["--hours=-1 must be positive"]),
    (RUN, ["train.emulate=true", "train.emulate_slow=9:2.0@0-1"], ["train.emulate_slow=9:2@0-1", "ranks are 0 to 3"]),
    (RUN, ["train.emulate_slow=1:99999999999999999999"], ["would not end; write 1e+06 or less, or hang"]),
    (RUN, ["train.emulate_slow=1>9:0.2"], ["names rank 9", "ranks are 0 to 3"]),
    # where ranks shall run
    (RUN, ["elastic.clocks=nvml"], ["elastic.clocks=nvml", "elastic.clocks=none"]),
    (("train",), ["launcher=ray"], ["launcher=ray", "127.0.0.1:1", "launcher=local"]),
    # data
    (RUN, ["data.path=/no/such.txt"], ["/no/such.txt"]),
    (RUN, ["data.path={empty}"], ["empty.txt", "empty"]),
    (RUN, ["data.path={latin}"], ["latin.txt", "0xe9", "UTF-8"]),
    (RUN, ["data.path={short}"], ["batch.seq_len"]),
    (RUN, ["data.path={ids}"], ["ids.uint16.bin", "token id 300", "model.vocab_size=256"]),
    (RUN, ["data.path={odd}"], ["odd.uint16.bin", "3 bytes"]),
    (RUN, ["data.path={jsonl}"], ["bad.jsonl", "line 2"]),
    (RUN, ["data.max_bytes=0"], ["data.max_bytes=0"]),
    (RUN, ["data.path={accents}", "model.vocab_size=128"], ["token id 195", "model.vocab_size=128"]),
    (RUN, ["data.tokenizer=/no/tokenizer.json"], ["/no/tokenizer.json"]),
]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes("café ".encode("latin-1") * 100)
    (folder / "accents.txt").write_text("café " * 100, encoding="utf-8")
    (folder / "short.txt").write_text("too short")
    (folder / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "odd.uint16.bin").write_bytes(b"123")
    np.array([1, 300, 2] * 100, dtype="<u2").tofile(folder / "ids.uint16.bin")
    names = ("empty.txt", "latin.txt", "short.txt", "bad.jsonl", "odd.uint16.bin", "ids.uint16.bin", "accents.txt")
    keys = ("empty", "latin", "short", "jsonl", "odd", "ids", "accents")
    return {key: str(folder / name) for key, name in zip(keys, names, strict=True)}


@pytest.mark.parametrize(
    ("verb", "wrong", "says"),
    [pytest.param(verb, *case, id=f"{verb} {' '.join(case[0])}") for verbs, *case in CASES for verb in verbs],
)
def test_one_line_exit_code_2_and_nothing_written(
    verb: str, wrong: list[str], says: list[str], files: dict[str, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    if "launcher=ray" in wrong:
        pytest.importorskip("ray")
    before = sorted(tmp_path.rglob("*"))
    out = {"plan": ["--out", str(tmp_path / "plan.yaml")], "simulate": ["--out", str(tmp_path / "pictures")]}
    argv = tiny(tmp_path / "run", *(argument.format(**files) for argument in wrong))
    assert main([verb, *argv, *out.get(verb, [])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trainsys"), error
    assert error.count("\n") == 1, error
    for part in says:
        assert part in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "wrong",
    [
        "join --repeat 0", "join --mib -1", "join --step-s nan", "clocks --replicas 0", "clocks --stages 0",
        "clocks --lost 99", "storm --only 99999", "storm --faults -1", "recovery --kills 0", "regroup --timeout -1",
    ],
)  # fmt: skip
def test_a_bench_names_the_option(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *wrong.split()]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith(f"trainsys: {wrong.partition(' ')[2]} ")


@pytest.mark.parametrize("verb", RUN)
def test_a_busy_port_is_seen_before_anything_is_written(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main([verb, *tiny(tmp_path / "run", f"elastic.port={port}")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"elastic.port={port}" in error and "elastic.port=0" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", RUN)
@pytest.mark.parametrize("key", ["run_dir", "checkpoint.dir"])
def test_a_folder_that_is_a_file(verb: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "taken"
    file.write_text("mine")
    for place in (file, file / "below"):
        assert main([verb, *tiny(tmp_path / "run"), f"{key}={place}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{key}={place}" in error and "is a file" in error
    assert file.read_text() == "mine"
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert main(["train", *tiny(tmp_path / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_same_through_a_real_process(tmp_path: Path) -> None:
    with command("train", *tiny(tmp_path / "run", "train.stpes=1")) as running:
        code, out, err = running.finish()
    assert (code, out) == (2, "")
    assert err == "trainsys: train.stpes is unknown; did you mean train.steps?\n"
    assert not (tmp_path / "run").exists()


def test_every_number_has_bounds() -> None:
    """A new number in the config gets its line in `trainsys.bounds`, or a check that knows more."""
    known = ("model.", "batch.", "parallel.", "data.max_bytes", "faults.seed")  # checked with the layout or the data
    numbers = [key for key, value in _leaves(RunConfig()) if type(value) in (int, float)]
    assert len(numbers) > 40
    assert [key for key in numbers if key not in BOUNDS and not key.startswith(known)] == []


def _leaves(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    assert dataclasses.is_dataclass(config)
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{part.name}.")
        else:
            yield prefix + part.name, value
