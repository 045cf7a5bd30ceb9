"""The way of the weights: trained here on one layout, exported, read by transformers, trained on from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from trainsys.cli.main import main
from trainsys.config import load
from trainsys.data.build import build_source
from trainsys.data.sampler import Sampler

TINY = [
    "configs/run/tiny.yaml", "model.dim=32", "model.num_layers=2", "model.vocab_size=256", "data.tokenizer=bytes",
    "data.max_bytes=200000", "batch.seq_len=32", "batch.global_size=4", "batch.microbatch_size=1", "train.steps=2",
    "faults.schedule=", "faults.kills=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reshard")
    assert main(["train", *TINY, f"run_dir={root}/first"]) == 0
    step = root / "first" / "checkpoints" / "step-00000002"
    assert main(["reshard", str(step), f"hf:{root}/hf", "--shard-mib", "1"]) == 0
    return root


def test_training_goes_on_from_exported_weights(exported: Path) -> None:
    config = load([*TINY, f"run_dir={exported}/second", f"train.init_from=hf:{exported}/hf"])
    assert main(["train", *TINY, "parallel.pp=1", "parallel.dp=4", f"run_dir={exported}/second",
                 f"train.init_from=hf:{exported}/hf"]) == 0  # fmt: skip
    loss = json.loads((exported / "second" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    inputs, targets = Sampler(build_source(config.data, 256), 32, config.train.seed).batch(0, 4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported / "hf").eval()
    logits = theirs(torch.from_numpy(inputs)).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    assert loss == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["dcp", "universal", "megatron"])
def test_a_run_starts_from_any_kind(kind: str, exported: Path) -> None:
    """The same first loss as from the Hugging Face folder, to the bit."""
    step = exported / "first" / "checkpoints" / "step-00000002"
    address = f"{kind}:{step if kind == 'dcp' else exported / kind}"
    if kind != "dcp":
        assert main(["reshard", str(step), address]) == 0
    losses = []
    for name, start in ((kind, address), (f"hf-{kind}", f"hf:{exported}/hf")):
        run = [
            *TINY,
            "train.steps=1",
            "parallel.pp=1",
            "parallel.dp=2",
            "cluster.nodes=1",
            f"run_dir={exported}/{name}-run",
        ]
        assert main(["train", *run, f"train.init_from={start}"]) == 0
        losses.append(json.loads((exported / f"{name}-run" / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["reshard", "{root}/first", "hf:{root}/new"], "is no checkpoint folder; name one like"),
        (["reshard", "{step}", "{root}/new"], "is not named after its step; write"),
        (["reshard", "{step}", "hf:{root}/hf"], "exists already"),
        (["reshard", "{step}", "hf:/proc/new"], "/proc/new cannot be made"),
        (["train", *TINY, "run_dir={root}/x", "train.init_from=hf:{root}/none"], "is no Hugging Face checkpoint"),
        (["train", *TINY, "run_dir={root}/x", "train.init_from=hf:{root}/hf", "model.dim=64"], "set model.dim=32"),
    ],
)
def test_bad_input_is_one_line(exported: Path, args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"root": exported, "step": exported / "first" / "checkpoints" / "step-00000002"}
    assert main([a.format(**places) for a in args]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (exported / "new").exists()
    assert not (exported / "x").exists()


def test_a_damaged_checkpoint_is_not_exported(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = exported / "first" / "checkpoints" / "step-00000002"
    data = sorted(step.glob("*.distcp"))[0]
    whole = data.read_bytes()
    data.write_bytes(whole[:-10] + bytes(10))
    assert main(["reshard", str(step), f"hf:{exported}/new"]) == 2
    assert "is damaged" in capsys.readouterr().err
    data.write_bytes(whole)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["parallel.dp=0"], "parallel.dp=0 must be at least 1"),
        (["parallel.cp=0"], "parallel.cp=0 must be at least 1"),
        (["parallel.pp=2", "parallel.stage_replicas=[1,-1]"], "every stage needs at least 1"),
        (["parallel.pp=2", "parallel.stage_replicas=[1]"], "names 1 stages but parallel.pp=2"),
        (["parallel.vp=3", "parallel.stage_layers=[1,1]"], "names 2 runs but parallel.pp·vp=1·3"),
        (["parallel.zero=9"], "parallel.zero=9 is unknown"),
        (["parallel.ep=2"], "parallel.ep=2 exceeds model.num_experts=0"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(
    exported: Path, overrides: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    step = exported / "first" / "checkpoints" / "step-00000002"
    target = exported / "none" / "step-00000002"
    assert main(["reshard", str(step), str(target), *overrides]) == 2
    assert says in capsys.readouterr().err
    assert not target.parent.exists()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"rope_theta": 5.0}, "config.json is damaged: its checksum does not match"),
        ({"vocab_size": None}, "config.json has no vocab_size"),
        ({"hidden_size": "abc"}, "config.json is damaged: TypeError"),
        ({"rope_scaling": 5}, "config.json is damaged: AttributeError"),
    ],
)
def test_a_changed_architecture_is_named(
    exported: Path, edit: dict[str, object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours by its checksum; another's, which has none, by what its config.json lacks."""
    bad = tmp_path / "bad"
    shutil.copytree(exported / "hf", bad)
    about = json.loads((bad / "config.json").read_text())
    about = {key: value for key, value in {**about, **edit}.items() if value is not None}
    if "rope_scaling" in edit:
        about.pop("rope_parameters", None)
    (bad / "config.json").write_text(json.dumps(about))
    if "rope_theta" not in edit:
        (bad / "SHA256SUMS").unlink()
    assert main(["reshard", f"hf:{bad}", f"hf:{tmp_path}/out"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
