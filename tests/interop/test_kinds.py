"""From every kind of checkpoint to every other and back, and what torch itself makes of the files."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from values import LLAMA, MODELS, Values, assert_same, step_folder, targets, write

from trainsys.config import ParallelConfig
from trainsys.elastic.checkpoint import load_state
from trainsys.elastic.kinds import KINDS, open_source, parse_address
from trainsys.elastic.step_folder import layout_of
from trainsys.interop.formats import STAGING
from trainsys.interop.hf import HFTarget
from trainsys.interop.naming import HF, OURS
from trainsys.interop.torch_files import Mapped, load_lazily
from trainsys.interop.torch_stream import Coming, save_streamed
from trainsys.models.geometry import tensors
from trainsys.space.box import Box
from trainsys.space.tensor import SLOTS, Space


@pytest.mark.parametrize("model", MODELS)
def test_what_a_target_writes_its_source_reads_back(model: str, tmp_path: Path) -> None:
    values = Values(MODELS[model])
    for name, (target, slots) in targets(values).items():
        write(values, target, tmp_path / name)
        source = open_source(f"{name.split()[0]}:{tmp_path / name}")
        assert_same(source, values, slots)
        assert source.step == (None if name == "hf" else 7)


@pytest.mark.parametrize(
    "parallel",
    [
        {},
        {"tp": 2, "dp": 2},
        {"pp": 3, "dp": 2, "zero": 1},
        {"stage_layers": (2, 1), "pp": 2},
        {"zero": 3, "dp": 3},
        {"cp": 2, "tp": 2, "zero": 1},
    ],
)
def test_any_layout_of_ours_has_the_same_bits(parallel: dict[str, int], tmp_path: Path) -> None:
    values = Values(LLAMA)
    folder = step_folder(values, tmp_path / "step-00000007", **parallel)
    source = open_source(str(folder))
    assert_same(source, values)
    again = step_folder(source, tmp_path / "again" / "step-00000007", tp=2)
    assert_same(open_source(f"dcp:{again}"), values)
    files = sorted(p.name for p in folder.glob("*.distcp"))
    layout = layout_of(values.config, ParallelConfig(**parallel), 16384)
    assert len(files) <= len(layout.ranks) and len(files) >= layout.pp


def test_torch_loads_what_we_write(tmp_path: Path) -> None:
    """Its DCP reader reads our streamed items, and so does a run that resumes."""
    values = Values(LLAMA)
    folder = step_folder(values, tmp_path / "step-00000007", tp=2, dp=2, zero=1)
    wanted = {f"{slot}.{n}": torch.empty_like(v) for slot in SLOTS for n, v in values.values[slot].items()}
    dcp.load(wanted, checkpoint_id=str(folder), no_dist=True)
    for slot in SLOTS:
        for name, value in values.values[slot].items():
            assert torch.equal(wanted[f"{slot}.{name}"], value)
    space = Space(tensors(values.config))
    layout = layout_of(values.config, ParallelConfig(), 16384)
    state = load_state(folder, space, layout, 0, torch.float32, torch.device("cpu"))
    for piece in state.pieces:
        tensor = space.tensors[piece.tensor]
        expected = values.values["exp_avg"][tensor.name].flatten()[piece.start : piece.stop]
        assert torch.equal(state.view("exp_avg", piece), expected)


@pytest.mark.parametrize("names", ["ours", "hf"])
def test_a_state_dict_of_torch(names: str, tmp_path: Path) -> None:
    """Weights and Adam's states as ``get_state_dict`` names them, written by torch."""
    values = Values(LLAMA)
    naming = OURS if names == "ours" else HF
    theirs = {t.name: naming.spans(values.config, t)[0].name for t in tensors(values.config)}
    model = {theirs[n]: v for n, v in values.values["master"].items()}
    adam = {
        theirs[n]: {"step": torch.tensor(7.0), **{slot: values.values[slot][n] for slot in SLOTS[1:]}} for n in theirs
    }
    groups = [{"lr": 0.1, "params": list(model)}]
    dcp.save(
        {"model": model, "optim": {"state": adam, "param_groups": groups}}, checkpoint_id=str(tmp_path), no_dist=True
    )
    source = open_source(f"dcp:{tmp_path}")
    assert_same(source, values)
    assert source.step == 7


@pytest.mark.parametrize("kind", ["hf", "universal", "megatron"])
def test_sha256sum_agrees(kind: str, tmp_path: Path) -> None:
    values = Values(LLAMA)
    write(values, targets(values)[kind][0], tmp_path / "out")
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True)
    assert done.returncode == 0, done.stderr
    listed = {line.split("  ")[1] for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()}
    assert listed == {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()} - {
        "SHA256SUMS"
    }


@pytest.mark.parametrize("kind", ["hf", "universal", "megatron", "dcp"])
def test_no_read_is_larger_than_the_staging_buffer(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tensors' sizes; no whole tensor is asked for, let alone a whole model."""
    for module in ("formats", "assembly"):
        monkeypatch.setattr(f"trainsys.interop.{module}.STAGING", 256)
    monkeypatch.setattr("trainsys.elastic.step_folder.STAGING", 256)
    values = Values(LLAMA)
    assert max(v.numel() for v in values.values["master"].values()) > 3000
    if kind == "dcp":
        step_folder(values, tmp_path / "step-00000007")
    else:
        write(values, targets(values)[kind][0], tmp_path / "out")
    assert 0 < max(values.reads) <= 256 < STAGING
    source = open_source(f"{kind}:{tmp_path / ('step-00000007' if kind == 'dcp' else 'out')}")
    assert_same(source, values, source.slots)


def test_the_largest_read_is_told(tmp_path: Path) -> None:
    values = Values(LLAMA)
    source = open_source(str(step_folder(values, tmp_path / "step-00000007")))
    source.check(values.config)
    done = write(source, HFTarget(values.config, torch.float32), tmp_path / "out")
    assert done.largest_read == 4 * max(t.numel for t in tensors(values.config))


@pytest.mark.parametrize("large", [1, 1 << 30])
def test_torch_loads_streamed_files(large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of every dtype, with headers for large files too, at any place in a file."""
    monkeypatch.setattr("trainsys.interop.torch_stream._LARGE", large)
    expected = {str(d): torch.arange(35.0).view(5, 7).to(d) for d in (torch.float64, torch.float32, torch.bfloat16)}

    def coming() -> dict[str, Coming]:
        return {name: Coming((5, 7), v.dtype, iter([v[:2], v[2:]])) for name, v in expected.items()}

    with (tmp_path / "whole.pt").open("wb") as stream:
        save_streamed(stream, coming())
    with (tmp_path / "inner").open("wb") as stream:
        stream.write(b"before.")
        length = save_streamed(stream, coming())
        stream.seek(0, 2)
        stream.write(b"after")
    inner = (tmp_path / "inner").read_bytes()[7:-5]
    assert len(inner) == length
    lazy = load_lazily(Mapped(tmp_path / "inner"), 7, length)
    for name, value in expected.items():
        assert torch.equal(torch.load(tmp_path / "whole.pt")[name], value)
        assert torch.equal(torch.load(tmp_path / "whole.pt", mmap=True)[name], value)
        assert torch.equal(torch.load(io.BytesIO(inner))[name], value)
        assert torch.equal(lazy[name].read(Box((1, 2), (4, 7))), value[1:4, 2:])


def test_addresses() -> None:
    assert parse_address("runs/a:b/step-00000007", "SRC") == ("dcp", Path("runs/a:b/step-00000007"))
    assert parse_address("megatron:x", "SRC") == ("megatron", Path("x"))
    with pytest.raises(ValueError, match=f"SRC tf:x is not of the form KIND:PATH; kinds: {', '.join(KINDS)}"):
        parse_address("tf:x", "SRC")
