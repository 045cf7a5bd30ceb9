"""Hugging Face safetensors folders: any box of a weight is read from, or written to, its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainsys.config import ModelConfig
from trainsys.interop.assembly import Assembly
from trainsys.interop.formats import NamedSource, Read, Shard, Written
from trainsys.interop.fragments import Fragments
from trainsys.interop.hf_names import config_from_hf, config_to_hf
from trainsys.interop.naming import HF, HF_FUSED
from trainsys.interop.sums import Sums
from trainsys.interop.torch_stream import as_bytes
from trainsys.models.geometry import resolve
from trainsys.space.box import Box

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


# -- read ------------------------------------------------------------------------------------------------------------


def open_hf(path: Path) -> NamedSource:
    """An existing folder, its weights in one file or several. Files are mapped, so a box costs its own bytes.

    Raises:
        ValueError: one line, for a folder, file or architecture that is not right.
    """
    try:
        hf_config: dict[str, Any] = json.loads((path / "config.json").read_text())
    except OSError as error:
        raise ValueError(f"{path} is no Hugging Face checkpoint: config.json: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no Hugging Face checkpoint: config.json: {error}") from None
    sums, table = Sums(path), dict[str, Fragments]()
    for file in ("config.json", INDEX):
        if (path / file).exists():
            sums.verify(path / file)
    config = _architecture(path, hf_config)
    if (path / INDEX).exists():
        files = _indexed(path)
    elif (path / SINGLE).exists():
        files = {SINGLE: None}
    else:
        raise ValueError(f"{path} has neither {SINGLE} nor {INDEX}")
    for file, wanted in files.items():
        opened = _File(path / file, sums)
        for name in opened.names if wanted is None else wanted:
            table[name] = Fragments(opened.slice(name).shape)
            table[name].add(Box.whole(table[name].shape), opened.slice(name))
    source = NamedSource(path, {"master": table}, (HF, HF_FUSED))
    source.config = config
    return source


def _architecture(path: Path, hf_config: Any) -> ModelConfig:
    """What a ``config.json`` describes. Raises ValueError, also for one that lacks or mistypes what it must say."""
    try:
        return resolve(config_from_hf(hf_config))
    except KeyError as error:
        raise ValueError(f"{path / 'config.json'} has no {error.args[0]}") from None
    except (TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"{path / 'config.json'} is damaged: {type(error).__name__} {error}") from None


def _indexed(path: Path) -> dict[str, list[str] | None]:
    """File -> the names that the index says are in it. Raises ValueError."""
    try:
        where: dict[str, str] = json.loads((path / INDEX).read_text())["weight_map"]
        files: dict[str, list[str] | None] = {file: [] for file in where.values()}
        for name, file in where.items():
            names = files[file]
            assert names is not None
            names.append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / INDEX} is damaged: {type(error).__name__} {error}") from None
    return files


class _File:
    """One safetensors file, its header read."""

    def __init__(self, path: Path, sums: Sums) -> None:
        from safetensors import SafetensorError, safe_open

        self._path, self._sums = path, sums
        try:
            opened: Any = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        self._open = opened
        self.names: list[str] = list(opened.keys())

    def slice(self, name: str) -> _Slice:
        if name not in self.names:
            raise ValueError(f"{self._path} does not have {name}, although {INDEX} says so")
        return _Slice(self._path, self._sums, self._open.get_slice(name))


class _Slice:
    """A tensor in a safetensors file."""

    def __init__(self, path: Path, sums: Sums, view: Any) -> None:
        self._path, self._sums, self._view = path, sums, view
        self.shape = tuple(view.get_shape())
        self.dtype = _DTYPES.get(view.get_dtype(), torch.uint8)

    def read(self, box: Box) -> Tensor:
        self._sums.verify(self._path)
        values: Tensor = self._view[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))]
        return values


# -- write -----------------------------------------------------------------------------------------------------------


class HFTarget:
    """A folder that ``AutoModelForCausalLM.from_pretrained`` reads: weights in `dtype`, an index, ``config.json``.

    Args:
        shard_bytes: a new file begins above this.
    """

    slots = ("master",)

    def __init__(self, config: ModelConfig, dtype: torch.dtype, shard_bytes: int = 1 << 30) -> None:
        self._config, self._dtype = config, dtype
        self._assembly = Assembly(HF, config)
        self._groups: list[list[str]] = [[]]
        held = 0
        for name in self._assembly.shapes:
            if held and held + self._nbytes(name) > shard_bytes:
                self._groups.append([])
                held = 0
            self._groups[-1].append(name)
            held += self._nbytes(name)

    def shards(self) -> Sequence[Shard]:
        """The weight files, under their final names."""
        count = len(self._groups)
        names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)] if count > 1 else [SINGLE]
        return [
            Shard(name, sum(map(self._nbytes, group)), tuple(group))
            for name, group in zip(names, self._groups, strict=True)
        ]

    def write(self, path: Path, shard: Shard, read: Read, advance: Callable[[int], None]) -> None:
        """One safetensors file: the header, then each tensor's bytes."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in shard.items:
            stop = at + self._nbytes(name)
            shape = list(self._assembly.shapes[name])
            header[name] = {"dtype": _NAMES[self._dtype], "shape": shape, "data_offsets": [at, stop]}
            at = stop
        code = json.dumps(header, separators=(",", ":")).encode()
        code += b" " * (-len(code) % 8)
        with path.open("wb") as stream:
            stream.write(len(code).to_bytes(8, "little") + code)
            for name in shard.items:
                for slab in self._assembly.slabs("master", name, read, self._dtype):
                    advance(stream.write(as_bytes(slab)))

    def finish(self, folder: Path, written: Mapping[str, Written]) -> None:
        """The index where there are several files, and ``config.json``."""
        shards = self.shards()
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
                "weight_map": {name: shard.name for shard in shards for name in shard.items},
            }
            (folder / INDEX).write_text(json.dumps(index, indent=2))
        hf_config = config_to_hf(self._config, str(self._dtype).removeprefix("torch."))
        (folder / "config.json").write_text(json.dumps(hf_config, indent=2))

    def _nbytes(self, name: str) -> int:
        return Box.whole(self._assembly.shapes[name]).numel * self._dtype.itemsize
