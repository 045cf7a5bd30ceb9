"""Checkpoints that DeepSpeed and Megatron-Core wrote themselves, and what they make of ours."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import write_deepspeed
import write_megatron
from values import Values, step_folder, write

from trainsys.cli.main import main
from trainsys.config import ModelConfig
from trainsys.elastic.kinds import open_source
from trainsys.interop.formats import Source
from trainsys.interop.megatron import MegatronTarget
from trainsys.interop.naming import MEGATRON, OURS
from trainsys.interop.universal import UniversalTarget
from trainsys.models.geometry import logical_name, resolve, tensors
from trainsys.models.registry import build
from trainsys.space.box import Box
from trainsys.space.tensor import SLOTS

ROOT = Path(__file__).parents[2]


def missing(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ModuleNotFoundError:
        return True


needs_deepspeed = pytest.mark.skipif(missing("deepspeed"), reason="DeepSpeed is not installed")
needs_megatron = pytest.mark.skipif(missing("megatron.core"), reason="Megatron-Core is not installed")


def run_peer(script: str, *args: object, ranks: int = 0, **environment: str) -> None:
    """Run a script, `ranks` times at once with its rank, their number and a port at the end; or once with a port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tails = [(rank, ranks, port) for rank in range(ranks)] or [(port,)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, f"tests/interop/{script}", *map(str, (*args, *tail))] for tail in tails]
    running = [
        subprocess.Popen(c, cwd=ROOT, env={**env, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for c in commands
    ]
    try:
        for process in running:
            said = process.communicate(timeout=100)[0].decode()
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in running:
            process.kill()


def once(factory: pytest.TempPathFactory, name: str, write_into: Callable[[Path], None]) -> Path:
    """A folder that one of the processes that share a run of the tests fills, for all of them."""
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            folder.mkdir()
            write_into(folder)
            (folder / "done").touch()
    return folder


def whole(source: Source, config: ModelConfig, slot: str) -> dict[str, torch.Tensor]:
    return {t.name: source.read(slot, t, Box.whole(t.shape)) for t in tensors(config)}


# -- DeepSpeed -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(1, "float32", 2), (2, "bfloat16", 2), (3, "bfloat16", 3)], ids=str)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """What DeepSpeed saved after two steps: (ZeRO stage, folder)."""
    stage, dtype, ranks = request.param

    def save(folder: Path) -> None:
        run_peer("write_deepspeed.py", folder, stage, dtype, ranks=ranks)

    return stage, once(tmp_path_factory, f"deepspeed{stage}", save)


@needs_deepspeed
def test_what_a_deepspeed_engine_holds(trained: tuple[int, Path]) -> None:
    """Masters and moments bit for bit, and the step; also by way of their own Universal Checkpoint, and of ours."""
    stage, tmp_path = trained
    held = torch.load(tmp_path / "held.pt")
    config = resolve(write_deepspeed.CONFIG)
    flag = ["--inject_missing_state"] if stage < 3 else []
    converter = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1"]
    folders = [
        "--input_folder",
        f"{tmp_path}/global_step2",
        "--output_folder",
        f"{tmp_path}/uni/global_step2_universal",
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([*converter, *folders, *flag, "--num_merge_workers", "1"], check=True, capture_output=True, env=env)
    model = [f"model.{key}={value}" for key, value in vars(config).items() if key != "tied"]
    assert main(["reshard", f"deepspeed:{tmp_path}", f"{tmp_path}/step-00000002", *model, "parallel.tp=2"]) == 0
    for address in (f"deepspeed:{tmp_path}", f"universal:{tmp_path}/uni", f"{tmp_path}/step-00000002"):
        source = open_source(address)
        source.check(config)
        assert source.step == int(held["steps"]) == 2
        assert source.slots == SLOTS
        for slot in SLOTS:
            for name, value in whole(source, config, slot).items():
                assert torch.equal(value, held[f"{slot}.{name}"]), (address, slot, name)


@needs_deepspeed
def test_damage_to_a_deepspeed_checkpoint_is_named(trained: tuple[int, Path], tmp_path: Path) -> None:
    """A lost rank, a flipped bit, a file cut short, and a rank of another step."""
    config = resolve(write_deepspeed.CONFIG)
    for damage in ("lost", "flipped", "cut", "stale"):
        folder = tmp_path / damage
        shutil.copytree(trained[1] / "global_step2", folder)
        (path,) = folder.glob("*zero_pp_rank_1_mp_rank_00_optim_states.pt")
        data = bytearray(path.read_bytes())
        if damage == "lost":
            path.unlink()
            said = r"was written by [23] ranks; the optimizer states of rank 1 are missing"
        elif damage == "flipped":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
            said = f"{path.name} is damaged: .* does not match its checksum"
        elif damage == "cut":
            path.write_bytes(data[:-1000])
            said = f"{path.name} is damaged"
        else:
            states = torch.load(path, weights_only=False)
            inner = states["optimizer_state_dict"]
            inner = inner["base_optimizer_state"] if "base_optimizer_state" in inner else inner["optimizer_state_dict"]
            inner["state"][0]["step"] -= 1
            torch.save(states, path)
            said = "mixes steps 1, 2; its states are not of one moment"
        with pytest.raises(ValueError, match=said):  # noqa: PT012 - damage to the data shows when it is read
            source = open_source(f"deepspeed:{folder}")
            source.check(config)
            for slot in SLOTS:
                whole(source, config, slot)


@needs_deepspeed
def test_deepspeed_loads_our_universal_checkpoint(tmp_path: Path) -> None:
    """Of a run on another layout, by two ranks under ZeRO-2."""
    values = Values(resolve(write_deepspeed.CONFIG))
    source = open_source(str(step_folder(values, tmp_path / "step-00000007", tp=2, pp=2)))
    source.check(values.config)
    write(source, UniversalTarget(values.config, OURS, 7), tmp_path / "out")
    run_peer("write_deepspeed.py", tmp_path / "out", 2, "float32", ranks=2, STEPS="0")
    held = torch.load(tmp_path / "out" / "held.pt")
    assert int(held["steps"]) == 7
    for slot in SLOTS:
        for name, value in values.values[slot].items():
            assert torch.equal(held[f"{slot}.{name}"], value), (slot, name)


# -- Megatron-Core ---------------------------------------------------------------------------------------------------


def check_against(held: dict[str, object], source: Source, config: ModelConfig) -> None:
    """Our model computes what theirs does, and the moments are theirs, sums over each fused matrix being equal."""
    masters = whole(source, config, "master")
    model = build(config, range(-1, config.num_layers + 1))
    model.load_state_dict({name: masters[logical_name(config, name)] for name in model.state_dict()})
    tokens, logits = held["tokens"], held["logits"]
    torch.testing.assert_close(model.eval()(tokens), logits, atol=1e-4, rtol=1e-4)


def all_held(folder: Path, config: ModelConfig, ranks: int) -> dict[str, dict[str, torch.Tensor]]:
    """Slots of their modules' parameters, those of an expert by its number in the layer."""
    states = {}
    for rank in range(ranks):
        for name, slots in torch.load(folder / f"held{rank}.pt")["states"].items():
            match = re.fullmatch(r"(.*\.local_experts\.)(\d+)(\..*)", name)
            first = rank * config.num_experts // ranks
            states[f"{match[1]}{first + int(match[2])}{match[3]}" if match else name] = slots
    return states


def check_values(held: dict[str, dict[str, torch.Tensor]], source: Source, config: ModelConfig) -> None:
    """Every box of ours is where it belongs in a parameter of theirs, bit for bit, and none of theirs is left over."""
    names = set()
    for t in tensors(config):
        for span in MEGATRON[0].spans(config, t):
            name = span.name.replace("decoder.layers.", f"decoder.layers.{t.block}.")
            name = name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.")
            name = name.replace("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm.")
            name = name.replace(".experts.experts.", f".experts.local_experts.{t.expert}.")
            names.add(name)
            at = span.theirs(span.box)
            index = tuple(slice(a, b) for a, b in zip(at.start, at.stop, strict=True))[len(span.lead) :]
            for slot in SLOTS:
                assert torch.equal(source.read(slot, t, span.box), held[name][slot][index]), (slot, t.name, name)
    assert names == set(held)


Case = tuple[str, str, int]  # how it is saved, model, ranks
SAVED: list[Case] = [
    ("stacked", "llama", 1),
    ("layers", "qwen3", 1),
    ("stacked", "mixtral", 1),
    ("layers", "mixtral", 2),
    ("stacked_te", "qwen3_moe", 2),
    ("layers_te", "qwen3_moe", 1),
]
LOADED: list[Case] = [
    ("load", "llama", 1),
    ("load", "qwen3", 1),
    ("load", "mixtral", 1),
    ("load_te", "mixtral", 2),
    ("load", "qwen3_moe", 2),
]


@pytest.fixture(scope="module")
def megatron(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Path]:
    """Where Megatron saved each of `SAVED`, and what it made of our checkpoint of each of `LOADED`."""

    def save(folder: Path) -> None:
        folders = {case: folder / "-".join(map(str, case)) for case in (*SAVED, *LOADED)}
        for case in folders:
            folders[case].mkdir()
        for case in LOADED:
            values = Values(resolve(write_megatron.CONFIGS[case[1]]))
            target = MegatronTarget(values.config, torch.float32, 2, True, ep=case[2])
            write(values, target, folders[case] / "iter_0000002")
        for ranks in (1, 2):  # Megatron takes seconds to import: all of them in one process
            jobs = [part for case in folders if case[2] == ranks for part in (folders[case], *case[:2])]
            run_peer("write_megatron.py", *jobs, ranks=ranks)

    folder = once(tmp_path_factory, "megatron", save)
    return {case: folder / "-".join(map(str, case)) for case in (*SAVED, *LOADED)}


@needs_megatron
@pytest.mark.parametrize("case", SAVED, ids=str)
def test_what_megatron_saves_computes_the_same_here(megatron: dict[Case, Path], case: Case) -> None:
    """Experts also where they are dealt to two ranks, whose optimizers are then chained."""
    config, folder = resolve(write_megatron.CONFIGS[case[1]]), megatron[case]
    source = open_source(f"megatron:{folder}/iter_0000002")
    source.check(config)
    assert (source.step, source.slots) == (2, SLOTS)
    check_against(torch.load(folder / "held0.pt"), source, config)
    check_values(all_held(folder, config, case[2]), source, config)


@needs_megatron
@pytest.mark.parametrize("case", LOADED, ids=str)
def test_megatron_loads_what_we_write(megatron: dict[Case, Path], case: Case) -> None:
    values, folder = Values(resolve(write_megatron.CONFIGS[case[1]])), megatron[case]
    check_against(torch.load(folder / "held0.pt"), values, values.config)
    check_values(all_held(folder, values.config, case[2]), values, values.config)
