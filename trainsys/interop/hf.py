"""Hugging Face safetensors folders: read any box of a weight, write a whole model without holding it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainsys.config import ModelConfig, RunConfig, to_dict
from trainsys.interop.hf_names import config_from_hf, config_to_hf, fused_experts, ignorable, part_of, their_shapes
from trainsys.models.geometry import resolve, tensors
from trainsys.space.box import Box
from trainsys.space.tensor import LogicalTensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
Read = Callable[[str, Box], Tensor]  # (logical name, box) -> values


class HFFolder:
    """An existing checkpoint, sharded or not. Files are mapped, so a box costs its own bytes.

    Raises:
        ValueError: one line, for a folder, file or architecture that is not right.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.hf_config: dict[str, Any] = json.loads((path / "config.json").read_text())
        except OSError as error:
            raise ValueError(f"{path} is no Hugging Face checkpoint: config.json: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path} is no Hugging Face checkpoint: config.json: {error}") from None
        self.config = config_from_hf(self.hf_config)
        if (path / INDEX).exists():
            self._files: dict[str, str] = json.loads((path / INDEX).read_text())["weight_map"]
        elif (path / SINGLE).exists():
            self._files = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        else:
            raise ValueError(f"{path} has neither {SINGLE} nor {INDEX}")
        self._fused = fused_experts(self._files)

    def check(self, config: ModelConfig) -> None:
        """Whether exactly the tensors of `config` are there with their shapes; ValueError lists what is not so."""
        shapes, wrong = their_shapes(config, self._fused), []
        for name, shape in shapes.items():
            if name not in self._files:
                wrong.append(f"{name} {list(shape)} is missing")
            elif (found := self._shape(name)) != shape:
                wrong.append(f"{name} is {list(found)}, not {list(shape)}")
        extra = (name for name in sorted(self._files) if name not in shapes and not ignorable(config, name))
        wrong += [f"{name} {list(self._shape(name))} is not in our {config.family}" for name in extra]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ValueError(f"{self.path} does not hold this model: {'; '.join(wrong[:5])}{more}")

    def read(self, config: ModelConfig, tensor: LogicalTensor, box: Box) -> Tensor:
        """Elements of one box of a logical tensor, in the stored dtype."""
        part = part_of(config, tensor.name, self._fused)
        theirs = part.box(box)
        view = self._open(self._files[part.name]).get_slice(part.name)
        values: Tensor = view[tuple(slice(a, b) for a, b in zip(theirs.start, theirs.stop, strict=True))]
        if part.index is not None:
            values = values[0]
        return values.T if part.transposed else values

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open(self._files[name]).get_slice(name).get_shape())

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.path / file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.path / file} cannot be read: {' '.join(str(error).split())}") from None


def hf_folder(config: RunConfig) -> HFFolder:
    """The checkpoint that ``train.init_from=hf:PATH`` names, of the very architecture of ``config.model``.

    Raises:
        ValueError: one line, naming what does not fit.
    """
    kind, _, path = config.train.init_from.partition(":")
    if kind != "hf" or not path:
        raise ValueError(f"train.init_from={config.train.init_from} is not of the form hf:FOLDER")
    try:
        folder = HFFolder(Path(path).expanduser())
    except ValueError as error:
        raise ValueError(f"train.init_from: {error}") from None
    theirs, ours = to_dict(resolve(folder.config)), to_dict(resolve(config.model))
    for key, value in ours.items():
        if key not in ("dropout", "max_seq_len", "router_aux_coef") and theirs[key] != value:
            raise ValueError(f"{path} has {key}={theirs[key]}, the run has {value}; set model.{key}={theirs[key]}")
    folder.check(config.model)
    return folder


def write_hf(
    path: Path, config: ModelConfig, read: Read, dtype: torch.dtype, shard_bytes: int = 1 << 30
) -> Iterator[tuple[str, int]]:
    """Write a checkpoint that ``AutoModelForCausalLM.from_pretrained`` reads, one shard in memory at a time.

    Args:
        path: must not exist; appears when everything is written.
        read: where the weights come from.
        shard_bytes: a new file begins above this.

    Yields:
        (name, bytes) of each tensor written, for progress.

    Raises:
        ValueError: the destination exists or cannot be made.
        OSError: of the disk; nothing is left behind.
    """
    from safetensors.torch import save_file

    if path.exists():
        raise ValueError(f"{path} exists already; name a new folder")
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be made: {error.strerror}; name another folder") from None
    try:
        shards: list[dict[str, int]] = [{}]
        pending: dict[str, Tensor] = {}
        for name, values in _assembled(config, read, dtype):
            size = values.numel() * values.element_size()
            if pending and sum(shards[-1].values()) + size > shard_bytes:
                save_file(pending, temporary / str(len(shards)), metadata={"format": "pt"})
                pending = {}
                shards.append({})
            pending[name] = values
            shards[-1][name] = size
            yield name, size
        save_file(pending, temporary / str(len(shards)), metadata={"format": "pt"})
        _finish(temporary, shards)
        hf_config = config_to_hf(config, str(dtype).removeprefix("torch."))
        (temporary / "config.json").write_text(json.dumps(hf_config, indent=2))
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _assembled(config: ModelConfig, read: Read, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Their tensors one by one; a fused one is filled from its parts, which follow each other in our order."""
    shapes = their_shapes(config)
    missing = Counter(part_of(config, t.name).name for t in tensors(config))
    open_: dict[str, Tensor] = {}
    for tensor in tensors(config):
        part, whole = part_of(config, tensor.name), Box.whole(tensor.shape)
        values = read(tensor.name, whole).to(dtype)
        target = open_.setdefault(part.name, torch.empty(shapes[part.name], dtype=dtype))
        place = part.box(whole)
        target[tuple(slice(a, b) for a, b in zip(place.start, place.stop, strict=True))] = (
            values.T if part.transposed else values
        )
        missing[part.name] -= 1
        if not missing[part.name]:
            yield part.name, open_.pop(part.name)


def _finish(folder: Path, shards: list[dict[str, int]]) -> None:
    """Give the shard files their final names, and the index where there are several."""
    if len(shards) == 1:
        (folder / "1").rename(folder / SINGLE)
        return
    names = {i: f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)}
    for i, name in names.items():
        (folder / str(i)).rename(folder / name)
    index = {
        "metadata": {"total_size": sum(size for shard in shards for size in shard.values())},
        "weight_map": {tensor: names[i] for i, shard in enumerate(shards, 1) for tensor in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2))
