"""Megatron-Core's ``torch_dist`` checkpoints: DCP in Megatron's names, with ``metadata.json`` and ``common.pt``.

Shoeybi et al. 2019 (arXiv:1909.08053). Weights lie under their own names, an optimizer's states under
``optimizer.state.STATE.NAME``; the layers of a model whose layers are alike are stacked on dim 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainsys.config import ModelConfig, OptimConfig
from trainsys.interop.assembly import Assembly
from trainsys.interop.dcp import Saved, read_dcp, write_metadata
from trainsys.interop.deepspeed import agreed_step
from trainsys.interop.formats import NamedSource, Read, Shard, Written
from trainsys.interop.fragments import Fragments
from trainsys.interop.naming import MEGATRON, megatron_to_write
from trainsys.interop.sums import Sums
from trainsys.interop.torch_files import StoredTensor, load_lazily
from trainsys.interop.torch_stream import Coming, save_streamed
from trainsys.space.box import Box

_STATE = re.compile(r"(?:chained_\d+\.)?optimizer\.state\.(exp_avg|exp_avg_sq|fp32_param|param)\.(.+)")
_SLOT = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "fp32_param": "master", "param": "master"}
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
           "common_backend_version": 1}  # fmt: skip
_STATELESS = "__extra_0.distcp"
_GROUP = {"wd_mult": 1.0, "lr_mult": 1.0, "is_expert_parallel": False, "is_decoupled_lr": False}  # how they tell groups


def _of_experts(name: str) -> bool:
    """Whether a tensor of theirs stacks the experts of a layer."""
    return ".mlp.experts." in name


# -- read ------------------------------------------------------------------------------------------------------------


def open_megatron(path: Path) -> NamedSource:
    """A folder ``iter_…``, with ``metadata.json`` in it. fp32 masters, where saved, stand for the weights.

    Raises:
        ValueError: one line, for what is missing, damaged or of another backend.
    """
    try:
        about = json.loads((path / "metadata.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint of Megatron-Core: metadata.json: {error}") from None
    backend = about.get("sharded_backend") if isinstance(about, dict) else None
    if backend != "torch_dist":
        raise ValueError(f"{path} has sharded_backend={backend!r}; torch_dist can be read")
    sums = Sums(path)
    stored, _ = read_dcp(path, sums)
    weights: dict[str, Fragments] = {}
    states: dict[str, dict[str, Fragments]] = {"master": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for name, at in stored.items():
        match = _STATE.fullmatch(name)
        if match:
            states[_SLOT[match[1]]][match[2]] = at
        elif name.startswith(("optimizer.", "chained_")):
            raise ValueError(f"{path} saves its optimizer as {name}; save it in the format fully_reshardable")
        else:
            weights[name] = at
    masters = {name: states["master"].get(name, at) for name, at in weights.items()}
    source = NamedSource(path, {**states, "master": masters}, MEGATRON)
    source.step = _step(path, sums)
    return source


def _step(path: Path, sums: Sums) -> int | None:
    """The optimizer's step and the trainer's iteration, which must agree."""
    if not (path / "common.pt").is_file():
        return None
    common = load_lazily(sums.mapped(path / "common.pt"))
    if not isinstance(common, dict):
        raise ValueError(f"{path / 'common.pt'} is no file of Megatron-Core")
    steps, todo = set(), [common.get("optimizer")]
    while todo:
        found = todo.pop()
        if isinstance(found, dict):
            for key, value in found.items():
                if key in ("common_step", "step") and value is not None:
                    steps.add(int(value.read().item() if isinstance(value, StoredTensor) else value))
            todo += [v for v in found.values() if isinstance(v, (dict, list))]
        elif isinstance(found, list):
            todo += found
    counted = common.get("iteration")
    return agreed_step(path, steps, int(counted) if counted is not None else None)


# -- write -----------------------------------------------------------------------------------------------------------


class MegatronTarget:
    """A ``torch_dist`` folder, a file per layer: weights, and with `moments` masters and Adam states in fp32.

    Args:
        dtype: of the weights.
        step: optimizer steps; ``iteration`` in ``common.pt``.
        optim: of the run; every parameter is in one group, as here.
        ep: above 1, what loads it has the experts in an optimizer of their own, chained to that of the rest.
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, step: int, moments: bool, optim: OptimConfig | None = None,
        ep: int = 1,
    ) -> None:  # fmt: skip
        self._config, self._dtype, self._step, self._optim = config, dtype, step, optim or OptimConfig()
        self._chained = ep > 1 and config.num_experts > 0
        self.slots = ("master", "exp_avg", "exp_avg_sq") if moments else ("master",)
        self._assembly = Assembly(megatron_to_write(config), config)

    def shards(self) -> Sequence[Shard]:
        """One file for each layer, one for the rest."""
        groups: dict[int, list[tuple[str, Box]]] = {}
        for name, shape in self._assembly.shapes.items():
            axes = 0 if not name.startswith("decoder.layers.") else 2 if _of_experts(name) else 1
            for at in product(*map(range, shape[:axes])):  # an item per layer and expert, since items are read whole
                box = Box((*at, *(0 for _ in shape[axes:])), (*(n + 1 for n in at), *shape[axes:]))
                groups.setdefault(at[0] if at else -1, []).append((name, box))
        shards = []
        for index, boxes in enumerate(groups.values()):
            items = [(key, slot, name, box, dtype) for name, box in boxes for key, slot, dtype in self._states(name)]
            shards.append(Shard(f"__{index}_0.distcp", sum(b.numel * d.itemsize for *_, b, d in items), tuple(items)))
        return shards

    def write(self, path: Path, shard: Shard, read: Read, advance: Callable[[int], None]) -> list[Any]:
        """One file of items; the note lists where each begins and how long it is."""
        places = []
        with path.open("wb") as stream:
            for _, slot, name, box, dtype in shard.items:
                start = stream.tell()
                save_streamed(stream, Coming(box.shape, dtype, self._pieces(slot, name, box, dtype, read, advance)))
                stream.seek(0, 2)
                places.append([start, stream.tell() - start])
        return places

    def finish(self, folder: Path, written: Mapping[str, Written]) -> None:
        """Which box lies where, the step, and the format's version."""
        items = []
        for shard in self.shards():
            for (key, _, name, box, dtype), (offset, length) in zip(shard.items, written[shard.name].note, strict=True):
                items.append(Saved(key, shard.name, offset, length, box, self._assembly.shapes[name], dtype))
        write_metadata(folder, [*items, *self._stateless(folder / _STATELESS)])
        common: dict[str, Any] = {"iteration": self._step, "checkpoint_version": 3.0}
        if len(self.slots) > 1:
            states = [self._common_state(experts) for experts in (False, True)]
            common["optimizer"] = dict(enumerate(states)) if self._chained else states[0]
        torch.save(common, folder / "common.pt")
        (folder / "metadata.json").write_text(json.dumps(_FORMAT))

    def _common_state(self, experts: bool) -> dict[str, Any]:
        """What one optimizer keeps beside its tensors."""
        group = {key: getattr(self._optim, key) for key in ("lr", "betas", "eps", "weight_decay")}
        marks = {**_GROUP, "is_expert_parallel": experts}
        return {"state": {"common_step": torch.tensor(float(self._step))}, "param_groups": [group | marks]}

    def _stateless(self, path: Path) -> Iterator[Saved]:
        """Their modules ask for a state of their own even where they have none, without FP8."""
        layers, experts = self._config.num_layers, self._config.num_experts
        owned = {
            ".".join(name.split(".")[2:-1]): _of_experts(name)
            for name in self._assembly.shapes
            if ".linear_" in name and name.endswith(".weight")
        }
        with path.open("wb") as stream:
            for module, stacked in {**owned, "self_attention.core_attention": False}.items():
                grid = (layers, experts) if stacked else (layers,)
                for at in product(*map(range, grid)):
                    start = stream.tell()
                    torch.save([None], stream)
                    number, count = (".".join(map(str, n)) for n in (at, grid))
                    name = f"decoder.layers.{module}._extra_state/shard_{number}_{count}"
                    yield Saved(name, path.name, start, stream.tell() - start)

    def _states(self, name: str) -> list[tuple[str, str, torch.dtype]]:
        states = [(name, "master", self._dtype)]
        if len(self.slots) > 1:
            prefix = f"chained_{int(_of_experts(name))}." if self._chained else ""
            keys = [("exp_avg", "exp_avg"), ("exp_avg_sq", "exp_avg_sq")]
            keys += [("fp32_param", "master")] if self._dtype != torch.float32 else []
            states += [(f"{prefix}optimizer.state.{key}.{name}", slot, torch.float32) for key, slot in keys]
        return states

    def _pieces(
        self, slot: str, name: str, box: Box, dtype: torch.dtype, read: Read, advance: Callable[[int], None]
    ) -> Iterator[Tensor]:
        for slab in self._assembly.slabs(slot, name, read, dtype, box):
            yield slab
            advance(slab.numel() * dtype.itemsize)
