"""What goes wrong while a checkpoint is converted: kills, full disks, damaged and foreign input."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from values import LLAMA, MODELS, Values, assert_same, step_folder, targets, write

from trainsys.cli.main import main
from trainsys.config import ModelConfig, load
from trainsys.elastic.conversion import _run_config
from trainsys.elastic.kinds import open_source
from trainsys.interop.convert import convert
from trainsys.interop.hf import HFTarget
from trainsys.interop.megatron import MegatronTarget, open_megatron
from trainsys.interop.naming import HF
from trainsys.interop.torch_files import Inert, Mapped, load_lazily
from trainsys.interop.universal import UniversalTarget
from trainsys.space.box import Box
from trainsys.space.tensor import SLOTS, LogicalTensor

MODEL = [f"model.{key}={getattr(LLAMA, key)}" for key in
         ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim", "max_seq_len")]  # fmt: skip


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class Unnamed:
    """A source that does not say what model it holds."""

    def __init__(self) -> None:
        self.path, self.config, self.manifest = Path("x"), None, {}


class Interrupted(Values):
    """A source whose reader is stopped after some reads."""

    def __init__(self, config: ModelConfig, reads: int, error: BaseException) -> None:
        super().__init__(config)
        self.limit, self.error = reads, error

    def read(self, slot: str, tensor: LogicalTensor, box: Box) -> torch.Tensor:
        if len(self.reads) == self.limit:
            raise self.error
        return super().read(slot, tensor, box)


@pytest.mark.parametrize("kind", ["hf", "universal", "megatron"])
def test_a_second_run_goes_on_with_the_next_file(kind: str, tmp_path: Path) -> None:
    values = Values(LLAMA)
    write(values, targets(values)[kind][0], tmp_path / "whole")
    stopped = Interrupted(LLAMA, len(values.reads) // 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(stopped, targets(values)[kind][0], tmp_path / "out")
    assert left(tmp_path) == ["out.partial", "out.partial.journal", "whole"]
    with (tmp_path / "out.partial.journal").open("a") as journal:
        journal.write('{"name": "cut off')
    reads = len(values.reads)
    done = write(values, targets(values)[kind][0], tmp_path / "out")
    assert done.resumed > 0
    assert len(values.reads) - reads < reads  # what was finished is not asked for again
    assert left(tmp_path) == ["out", "whole"]
    sums = [(tmp_path / name / "SHA256SUMS").read_text() for name in ("whole", "out")]
    assert sums[0] == sums[1]


def test_a_killed_process_is_gone_on_from(tmp_path: Path) -> None:
    folder = step_folder(Values(LLAMA), tmp_path / "step-00000007")
    command = ["reshard", str(folder), f"universal:{tmp_path}/out", "--json"]
    program = (
        "import os, signal, sys; from trainsys.elastic.conversion import Conversion; seen = []\n"
        "def advance(n, name): seen.append(name); len(set(seen)) > 20 and os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Conversion({command[1]!r}, {command[2]!r}, [], 'float32', 'hf', 1 << 30, -1, False, False).run(advance)"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done = subprocess.run(
        [sys.executable, "-m", "trainsys", *command], cwd=Path(__file__).parents[2], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"] == 20
    source = open_source(f"universal:{tmp_path}/out")
    source.check(LLAMA)
    assert left(tmp_path) == ["out", "step-00000007"]


def test_another_conversion_is_not_continued(tmp_path: Path) -> None:
    values = Interrupted(LLAMA, 8, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert(values, HFTarget(LLAMA, torch.float32, 9000), tmp_path / "out", {"dtype": "float32"}, lambda n, f: None)
    before = left(tmp_path / "out.partial")
    assert before
    with pytest.raises(
        ValueError, match=r"out\.partial is left of another conversion; remove it and out\.partial\.jour"
    ):
        convert(Values(LLAMA), HFTarget(LLAMA, torch.bfloat16, 9000), tmp_path / "out", {}, lambda n, f: None)
    assert left(tmp_path / "out.partial") == before


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished files stay, the one being written goes, and the same call goes on when there is space again."""
    from trainsys.interop import hf

    values, count, as_bytes = Values(LLAMA), [0], hf.as_bytes

    def full(slab: torch.Tensor) -> memoryview:
        count[0] += 1
        if count[0] == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return as_bytes(slab)

    monkeypatch.setattr(hf, "as_bytes", full)
    with pytest.raises(ValueError, match=r"no space left on the disk; .*out\.partial keeps what is finished"):
        write(values, HFTarget(LLAMA, torch.float32, 9000), tmp_path / "out")
    finished = len((tmp_path / "out.partial.journal").read_text().splitlines()) - 1
    assert finished == len(left(tmp_path / "out.partial")) > 0
    assert write(values, HFTarget(LLAMA, torch.float32, 9000), tmp_path / "out").resumed == finished
    assert_same(open_source(f"hf:{tmp_path}/out"), values, ("master",))


def test_a_failure_in_the_first_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="disk gone"):
        write(Interrupted(LLAMA, 3, OSError("disk gone")), HFTarget(LLAMA, torch.float32), tmp_path / "out")
    assert left(tmp_path) == []


# -- damage: in every kind the file is named, and nothing is written -------------------------------------------------


def flip(path: Path) -> None:
    """One bit in the longest run of data: the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "foreign": lambda path: path.write_bytes(b"something else " * 100),
}
FILES = {
    "hf": "model-00003-of-*.safetensors",
    "universal": "*/zero/model.layers.1.self_attn.q_proj.weight/exp_avg.pt",
    "megatron": "__2_0.distcp",
    "dcp": "__1_0.distcp",
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    values = Values(LLAMA)
    for kind in ("hf", "universal", "megatron"):
        write(values, targets(values)[kind][0], root / kind)
    step_folder(values, root / "dcp" / "step-00000007", dp=2, zero=1)
    return root


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_is_named(
    kind: str, damage: str, summed: bool, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With checksums beside the files, and without any but the archives' own."""
    shutil.copytree(originals / kind, tmp_path / "src")
    source = tmp_path / "src" / "step-00000007" if kind == "dcp" else tmp_path / "src"
    if not summed:
        (source / "SHA256SUMS").unlink()
        if kind == "hf" and damage == "flipped":
            pytest.skip("safetensors has no checksum of its own")
    (path,) = source.glob(FILES[kind])
    DAMAGES[damage](path)
    assert main(["reshard", f"{kind}:{source}", f"megatron:{tmp_path}/out", *([] if kind in ("hf", "dcp") else MODEL),
                 *(["--weights-only"] if kind == "hf" else [])]) == 2  # fmt: skip
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert path.name in said or path.parent.name in said
    assert not (tmp_path / "out").exists()


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"param": torch.ones(3), "more": Evil()}, tmp_path / "evil.pt")
    loaded = load_lazily(Mapped(tmp_path / "evil.pt"))
    assert isinstance(loaded["more"], Inert)
    assert torch.equal(loaded["param"].read(), torch.ones(3))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["tf:{root}/hf", "hf:{new}"], "SRC tf:{root}/hf is not of the form KIND:PATH; kinds: dcp, hf, deepspeed"),
        (["hf:{root}/hf", "xy:{new}"], "DST xy:{new} is not of the form KIND:PATH"),
        (["hf:{root}/hf", "deepspeed:{new}"], "deepspeed: is only read; can be written: dcp, hf, universal, megatron"),
        (["hf:{root}/hf", "hf:{root}/hf"], "SRC and DST are the same folder"),
        (["hf:{root}/hf", "megatron:{root}/universal"], "universal exists already"),
        (["hf:{root}/none", "hf:{new}"], "none is no Hugging Face checkpoint"),
        (["megatron:{root}/hf", "hf:{new}"], "is no checkpoint of Megatron-Core"),
        (["universal:{root}/hf", "hf:{new}"], "has no folder zero"),
        (["deepspeed:{root}/hf", "hf:{new}"], "has no …_optim_states.pt"),
        (["dcp:{root}/hf", "hf:{new}"], "is no checkpoint folder; name one like"),
        (["megatron:{root}/megatron", "hf:{new}"], "does not name its architecture; add a YAML file"),
        (["hf:{root}/hf", "universal:{new}"], "has no exp_avg and no exp_avg_sq; --zero-moments begins with"),
        (["hf:{root}/hf", "universal:{new}", "--weights-only"], "instead of --weights-only say --zero-moments"),
        (["{step}", "{new}"], "DST {new} is not named after its step; write {new}/step-00000007"),
        (["{step}", "{new}/step-00000008"], "write {new}/step-00000007"),
        (["{step}", "{new}/step-00000007", "train.seed=3"], "train.seed cannot be changed"),
        (["{step}", "{new}/step-00000007", "parallel.tp=3"], "model.num_heads=4 is not divisible by parallel.tp=3"),
        (["{step}", "universal:{new}", "--dtype", "bfloat16"], "keeps fp32 state; --dtype bfloat16 is for hf"),
        (["{step}", "megatron:{new}", "--names", "ours"], "--names ours is for universal: alone"),
        (["{step}", "{new}/step-00000007", "--names", "hf"], "--names hf is for universal: alone"),
        (["{step}", "universal:{new}", "--shard-mib", "64"], "--shard-mib 64 is for hf: alone"),
        (["{step}", "hf:{step}/new"], "lies inside SRC"),
        (["{step}", "hf:{new}", "--step", "9"], "--step 9, but"),
        (["{step}", "hf:/proc/new"], "/proc/new cannot be made"),
        (["hf:{root}/hf", "megatron:{new}", "--weights-only", "model.dim=64"], "has vocab_size=96, the run has 2048"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    args: list[str], said: str, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"root": originals, "new": tmp_path / "new", "step": originals / "dcp" / "step-00000007"}
    assert main(["reshard", *(a.format(**places) for a in args)]) == 2
    error = capsys.readouterr().err
    assert said.format(**places) in error
    assert len(error.strip().splitlines()) == 1
    assert left(tmp_path) == []


def test_another_architecture_lists_names_and_shapes(
    originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [*MODEL, "model.num_layers=4", "model.ffn_dim=64"]
    for kind in ("megatron", "universal"):
        assert main(["reshard", f"{kind}:{originals}/{kind}", f"hf:{tmp_path}/new", *other]) == 2
    megatron, universal = capsys.readouterr().err.splitlines()
    assert "linear_fc1.weight is [3, 96, 32], not [4, 128, 32]" in megatron
    assert "gate_proj.weight is [48, 32], not [64, 32]" in universal
    assert " more" in universal


def test_wrong_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """bf16 weights with moments are no masters, float64 does not fit in float32, and integers are no weights."""
    for dtype, args, said in (
        (torch.bfloat16, [], "is bfloat16, no fp32 state to train on from; --zero-moments begins anew"),
        (torch.float64, [], "is float64, more than this run keeps; set train.dtype=float64"),
        (torch.int32, [], "is int32; float64, float32, bfloat16 and float16 can be converted"),
    ):
        name = str(dtype).removeprefix("torch.")
        state = {f"state.{n}.{slot}": v for slot in SLOTS[1:] for n, v in Values(LLAMA).values[slot].items()}
        masters = {n: v.to(dtype) for n, v in Values(LLAMA).values["master"].items()}
        torch.distributed.checkpoint.save({**masters, **state}, checkpoint_id=str(tmp_path / name), no_dist=True)
        new = tmp_path / "new" / "step-00000007"
        assert main(["reshard", f"dcp:{tmp_path}/{name}", str(new), *MODEL, "--step", "7", *args]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["reshard", f"dcp:{tmp_path}/bfloat16", str(new), *MODEL, "--step", "7", "--zero-moments"]) == 0
    source = open_source(str(new))
    source.check(LLAMA)
    assert source.step == 7


# -- traps of Universal Checkpoints and of resharding in general ------------------------------------------------------


@pytest.fixture
def universal(originals: Path, tmp_path: Path) -> Path:
    shutil.copytree(originals / "universal", tmp_path / "src")
    (tmp_path / "src" / "SHA256SUMS").unlink()
    return tmp_path / "src" / "global_step7_universal"


def test_a_state_never_written_is_refused(universal: Path) -> None:
    (universal / "zero" / "model.norm.weight" / "exp_avg_sq.pt").unlink()
    with pytest.raises(ValueError, match=r"model\.norm\.weight/exp_avg_sq\.pt is missing"):
        open_source(f"universal:{universal}")


def test_a_parameter_never_written_is_refused(universal: Path) -> None:
    shutil.rmtree(universal / "zero" / "lm_head.weight")
    with pytest.raises(ValueError, match=r"lm_head\.weight \[96, 32\] is missing"):
        open_source(f"universal:{universal}").check(LLAMA)


def test_a_stale_moment_is_refused(universal: Path) -> None:
    torch.save(torch.tensor(3.0), universal / "zero" / "model.norm.weight" / "step.pt")
    with pytest.raises(ValueError, match="mixes steps 3, 7; its states are not of one moment"):
        open_source(f"universal:{universal}")


def test_the_step_is_not_reset_where_no_parameter_has_one(universal: Path) -> None:
    """Those made from ZeRO-3 have no step.pt: the trainer's own file tells; without it, nothing is guessed."""
    for path in universal.glob("zero/*/step.pt"):
        path.unlink()
    assert open_source(f"universal:{universal}").step == 7
    for path in universal.glob("*model_states.pt"):
        path.unlink()
    assert open_source(f"universal:{universal}").step is None


def test_an_unknown_step_is_asked_for(universal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in [*universal.glob("zero/*/step.pt"), *universal.glob("*model_states.pt")]:
        path.unlink()
    new = tmp_path / "new" / "step-00000007"
    assert main(["reshard", f"universal:{universal}", str(new), *MODEL]) == 2
    assert "does not say its step, which Adam needs; set --step N" in capsys.readouterr().err
    assert main(["reshard", f"universal:{universal}", str(new), *MODEL, "--step", "7"]) == 0


def test_flat_states_take_the_shape_of_the_parameter(universal: Path) -> None:
    """Those made from ZeRO-3 are one row, bare of a dict."""
    for path in universal.glob("zero/*/*.pt"):
        saved = torch.load(path)
        if isinstance(saved, dict) and "param" in saved:
            torch.save(saved["param"].flatten(), path)
    assert_same(open_source(f"universal:{universal}"), Values(LLAMA))


def test_masters_are_read_and_not_the_rounded_weights(universal: Path) -> None:
    """The trainer's own file has weights too, in the precision of the computation."""
    (path,) = universal.glob("*model_states.pt")
    saved = torch.load(path, weights_only=False)
    saved["module"] = {name: value.bfloat16() for name, value in saved["module"].items()}
    torch.save(saved, path)
    assert_same(open_source(f"universal:{universal}"), Values(LLAMA))


def test_a_padded_vocabulary_is_cut_to_size(universal: Path) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for path in universal.glob(f"zero/{name}/*.pt"):
            saved = torch.load(path)
            if isinstance(saved, dict):
                saved["param"] = torch.cat([saved["param"], torch.full((32, 32), 9.0)])
                torch.save(saved, path)
    assert_same(open_source(f"universal:{universal}"), Values(LLAMA))


def test_gate_and_up_are_not_mixed_up(originals: Path) -> None:
    """One fused matrix in Megatron: its first half is the gate. Queries, keys and values alternate by group."""
    source = open_source(f"megatron:{originals}/megatron")
    stored = source.tables["master"]["decoder.layers.mlp.linear_fc1.weight"]
    values = Values(LLAMA).values["master"]
    assert torch.equal(stored.read("", Box((1, 0, 0), (2, 48, 32)))[0], values["layers.1.feed_forward.w1.weight"])
    assert torch.equal(stored.read("", Box((1, 48, 0), (2, 96, 32)))[0], values["layers.1.feed_forward.w3.weight"])
    fused = source.tables["master"]["decoder.layers.self_attention.linear_qkv.weight"].read(
        "", Box((2, 0, 0), (3, 64, 32))
    )
    q, k, v = (values[f"layers.2.attention.{n}.weight"] for n in ("wq", "wk", "wv"))
    assert torch.equal(fused[0], torch.cat([q[:16], k[:8], v[:8], q[16:], k[8:], v[8:]]))


def test_a_file_with_the_default_model_names_a_model(tmp_path: Path) -> None:
    """Whoever writes the default's values down has named it; a file that says nothing of a model has not."""
    (tmp_path / "model.yaml").write_text("model: {family: llama}\n")
    (tmp_path / "other.yaml").write_text("parallel: {zero: 1}\n")
    (tmp_path / "run.yaml").write_text("base: model.yaml\n")
    assert load([str(tmp_path / "model.yaml")]).model == ModelConfig()
    source = Unnamed()
    for name in ("model.yaml", "run.yaml"):
        assert _run_config(source, [str(tmp_path / name)]).model == ModelConfig()
    assert _run_config(source, [f"model.dim={ModelConfig().dim}"]).model == ModelConfig()
    with pytest.raises(ValueError, match="does not name its architecture"):
        _run_config(source, [str(tmp_path / "other.yaml"), "parallel.tp=2"])


def test_two_files_for_the_same_elements_are_refused(originals: Path) -> None:
    source = open_source(str(originals / "dcp" / "step-00000007"))
    source.check(LLAMA)
    table = source.tables["exp_avg"]["layers.0.attention.wq.weight"]
    table.add(*table.parts[0])
    with pytest.raises(ValueError, match=r"attention\.wq\.weight.*: its files hold 2048 of 1024 elements"):
        source.read("exp_avg", LogicalTensor("layers.0.attention.wq.weight", (32, 32), 0), Box((0, 0), (32, 32)))


def test_a_run_keeps_its_position_and_settings(originals: Path, tmp_path: Path) -> None:
    """What a manifest says besides the step goes along, so that a resumed run sees no sample twice."""
    folder = originals / "dcp" / "step-00000007"
    assert main(["reshard", str(folder), f"{tmp_path}/step-00000007", "parallel.tp=2"]) == 0
    old, new = (json.loads((p / "trainsys.json").read_text()) for p in (folder, tmp_path / "step-00000007"))
    assert {k: v for k, v in old.items() if k not in ("files", "crc")} == {
        k: v for k, v in new.items() if k not in ("files", "crc")
    }
    assert new["position"] == 7 * new["batch"]["global_size"]


def test_names_of_the_module_that_loads(tmp_path: Path) -> None:
    values = Values(replace(LLAMA, tied=True))
    write(values, UniversalTarget(values.config, HF, 7), tmp_path / "out")
    names = {p.name for p in (tmp_path / "out" / "global_step7_universal" / "zero").iterdir()}
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "lm_head.weight" not in names


def test_experts_to_megatron_and_back(tmp_path: Path) -> None:
    """All values of a mixture, from and to a layout with two classes of experts."""
    folder = step_folder(Values(MODELS["moe"]), tmp_path / "step-00000007", dp=2, ep=2)
    model = [f"model.{key}={value}" for key, value in vars(MODELS["moe"]).items()]
    for ep in (1, 2):
        out, back = tmp_path / f"out{ep}", tmp_path / f"back{ep}" / "step-00000007"
        assert main(["reshard", str(folder), f"megatron:{out}", f"parallel.ep={ep}", "parallel.dp=2"]) == 0
        states = {
            name.split("optimizer.")[0]
            for name in FileSystemReader(out).read_metadata().state_dict_metadata
            if "optimizer." in name
        }
        assert states == ({""} if ep == 1 else {"chained_0.", "chained_1."})
        assert main(["reshard", f"megatron:{out}", str(back), *model, "parallel.dp=2", "parallel.ep=2"]) == 0
        assert_same(open_source(str(back)), Values(MODELS["moe"]))


def test_experts_lie_in_items_of_their_own(tmp_path: Path) -> None:
    """Megatron reads an item whole, also for one expert of it."""
    write(Values(MODELS["moe"]), MegatronTarget(MODELS["moe"], torch.float32, 7, True), tmp_path / "out")
    table = open_megatron(tmp_path / "out").tables["master"]
    parts = table["decoder.layers.mlp.experts.experts.linear_fc1.weight"].parts
    assert {box.shape[:2] for box, _ in parts} == {(1, 1)}
    assert len(parts) == MODELS["moe"].num_layers * MODELS["moe"].num_experts
