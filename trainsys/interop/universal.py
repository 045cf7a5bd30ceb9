"""DeepSpeed's Universal Checkpoints: a folder per parameter, a file per state, each the whole tensor.

Lian et al. 2024 (arXiv:2406.18820). `fp32.pt`, `exp_avg.pt` and `exp_avg_sq.pt` hold ``{"param": tensor}``; those that
came from ZeRO-3 hold a flat tensor alone, and no `step.pt`: their step stands in the trainer's own file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainsys.config import ModelConfig
from trainsys.interop.assembly import Assembly
from trainsys.interop.deepspeed import agreed_step, step_folder
from trainsys.interop.formats import NamedSource, Read, Shard, Written
from trainsys.interop.fragments import Fragments
from trainsys.interop.naming import Naming
from trainsys.interop.sums import SUMS, Sums
from trainsys.interop.torch_files import StoredTensor, load_lazily
from trainsys.interop.torch_stream import Coming, save_streamed
from trainsys.space.box import Box

_FILES = {"master": "fp32", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
_GROUPS = 64  # at least as many parameter groups as any optimizer has; {} keeps what the optimizer was made with
_VERSION = "0.16.0"  # of DeepSpeed, which refuses checkpoints of none


# -- read ------------------------------------------------------------------------------------------------------------


def open_universal(path: Path) -> NamedSource:
    """A folder ``global_stepN_universal`` or the one above with ``latest_universal``.

    Raises:
        ValueError: one line, for what is missing or damaged.
    """
    folder = step_folder(path, "latest_universal")
    zero, sums = folder / "zero", Sums(path if (path / SUMS).is_file() else folder)
    if not zero.is_dir():
        raise ValueError(f"{folder} has no folder zero; name a universal checkpoint's global_stepN_universal folder")
    counted, shapes = _trainer(folder, sums)
    tables: dict[str, dict[str, Fragments]] = {"master": {}, "exp_avg": {}, "exp_avg_sq": {}}
    steps = set()
    for parameter in sorted(p for p in zero.iterdir() if p.is_dir()):
        for slot, file in _FILES.items():
            at = parameter / f"{file}.pt"
            if not at.is_file():
                if slot == "master":
                    raise ValueError(f"{at} is missing")
                continue
            tables[slot][parameter.name] = _tensor(at, sums, shapes.get(parameter.name))
        if (parameter / "step.pt").is_file():
            step = load_lazily(sums.mapped(parameter / "step.pt"))
            steps.add(int(step.read().item() if isinstance(step, StoredTensor) else step))
    for slot, table in tables.items():  # some parameters with moments and some without would be a lost file
        lost = sorted(tables["master"].keys() - table.keys()) if table else []
        if lost:
            raise ValueError(f"{zero / lost[0] / _FILES[slot]}.pt is missing")
    source = NamedSource(folder, tables)
    source.step = agreed_step(folder, steps, counted)
    return source


def _trainer(folder: Path, sums: Sums) -> tuple[int | None, dict[str, tuple[int, ...]]]:
    """Step and shapes of the parameters as the trainer's own file has them, where there is one."""
    states = sorted(folder.glob("*model_states.pt"))
    if not states:
        return None, {}
    found = load_lazily(sums.mapped(states[0]))
    if not isinstance(found, dict):
        raise ValueError(f"{states[0]} is no file of DeepSpeed")
    shapes = {name: tuple(shape) for group in found.get("param_shapes") or () for name, shape in group.items()}
    return (int(found["global_steps"]) if "global_steps" in found else None), shapes


def _tensor(path: Path, sums: Sums, shape: tuple[int, ...] | None) -> Fragments:
    saved = load_lazily(sums.mapped(path))
    flat = isinstance(saved, StoredTensor)
    stored = saved if flat else saved.get("param") if isinstance(saved, dict) else None
    if not isinstance(stored, StoredTensor):
        raise ValueError(f"{path} holds no tensor under 'param'")
    if flat and shape is not None and stored.shape != shape and len(stored.shape) == 1:
        if stored.numel < prod(shape):
            raise ValueError(f"{path} has {stored.numel} elements, not the {prod(shape)} of {list(shape)}")
        at = Fragments(shape)
        at.add_run(0, stored, 0, prod(shape))
        return at
    at = Fragments(stored.shape)
    at.add(Box.whole(stored.shape), stored)
    return at


# -- write -----------------------------------------------------------------------------------------------------------


class UniversalTarget:
    """A folder that DeepSpeed loads with ``checkpoint: {load_universal: true}`` under ZeRO 1 and 2.

    Args:
        naming: of the module that will load it.
        step: optimizer steps, written for every parameter.
        tag: name of the folder inside, ``global_stepN_universal``.
    """

    slots = ("master", "exp_avg", "exp_avg_sq")

    def __init__(self, config: ModelConfig, naming: Naming, step: int) -> None:
        self._assembly, self._step = Assembly(naming, config), step
        self._tag = f"global_step{step}_universal"

    def shards(self) -> Sequence[Shard]:
        """A file per parameter and state, and the trainer's with all weights."""
        shapes, tag = self._assembly.shapes, self._tag
        files = [
            Shard(f"{tag}/zero/{name}/{file}.pt", 4 * prod(shape), (slot, name))
            for name, shape in shapes.items()
            for slot, file in _FILES.items()
        ]
        total = sum(prod(shape) for shape in shapes.values())
        return [*files, Shard(f"{tag}/mp_rank_00_model_states.pt", 4 * total, ())]

    def write(self, path: Path, shard: Shard, read: Read, advance: Callable[[int], None]) -> None:
        """One file, its tensors streamed."""

        def coming(slot: str, name: str) -> Coming:
            def pieces() -> Iterator[Tensor]:
                for slab in self._assembly.slabs(slot, name, read, torch.float32):
                    yield slab
                    advance(slab.numel() * 4)

            return Coming(self._assembly.shapes[name], torch.float32, pieces())

        value: Any
        if shard.items:
            slot, name = shard.items
            value = {"param": coming(slot, name), "cat_dim": 0}
        else:
            value = self._states({name: coming("master", name) for name in self._assembly.shapes})
        with path.open("wb") as stream:
            save_streamed(stream, value)

    def finish(self, folder: Path, written: Mapping[str, Written]) -> None:
        """The step of each parameter, the optimizer's common state, and the file that names the folder."""
        zero = folder / self._tag / "zero"
        for name in self._assembly.shapes:
            torch.save(torch.tensor(float(self._step)), zero / name / "step.pt")
        common = {"param_groups": [{} for _ in range(_GROUPS)], "clip_grad": 0.0, "ds_version": _VERSION}
        torch.save(common, zero / "optimizer_state.pt")
        (folder / "latest_universal").write_text(self._tag)

    def _states(self, module: dict[str, Coming]) -> dict[str, Any]:
        return {
            "module": OrderedDict(module),
            "param_shapes": [OrderedDict((name, tuple(shape)) for name, shape in self._assembly.shapes.items())],
            "buffer_names": [],
            "optimizer": None,
            "lr_scheduler": None,
            "global_steps": self._step,
            "global_samples": 0,
            "skipped_steps": 0,
            "dp_world_size": 1,
            "mp_world_size": 1,
            "ds_version": _VERSION,
            "universal_checkpoint_info": {"universal_checkpoint_version": 0.2},
        }
