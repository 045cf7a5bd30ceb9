"""Our own checkpoints as a source and as a target of conversions: `step-…` folders, cut by any layout."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainsys.config import ModelConfig, ParallelConfig, RunConfig
from trainsys.elastic.checkpoint import saved_places
from trainsys.elastic.manifest import MANIFEST, about_run, read_manifest, write_manifest
from trainsys.interop.dcp import METADATA, Saved, open_foreign_dcp, read_dcp, write_metadata
from trainsys.interop.formats import STAGING, NamedSource, Read, Shard, Source, Written
from trainsys.interop.naming import STORED
from trainsys.interop.sums import Sums, sums_of
from trainsys.interop.torch_stream import Coming, save_streamed
from trainsys.models.geometry import check_split, resolve, split_layers, tensors
from trainsys.planner.check import check_degrees
from trainsys.space.box import Box, cut
from trainsys.space.build import build_layout
from trainsys.space.layout import Layout
from trainsys.space.tensor import SLOTS, LogicalTensor, Space

_STEP = re.compile(r"step-(\d+)")


def open_dcp(path: Path) -> NamedSource:
    """A checkpoint of ours, or any DCP folder of a model's ``state_dict``. Raises ValueError, one line."""
    if (path / METADATA).is_file() and not (path / MANIFEST).exists() and not _STEP.fullmatch(path.name):
        return open_foreign_dcp(path)
    manifest = read_manifest(path)
    known = {name: (size, crc) for name, (size, crc) in manifest["files"].items()}
    stored, _ = read_dcp(path, Sums(path, known))
    tables = {
        slot: {name.removeprefix(f"{slot}."): at for name, at in stored.items() if name.startswith(f"{slot}.")}
        for slot in SLOTS
    }
    source = NamedSource(path, tables, (STORED,))
    fields = {f.name for f in dataclasses.fields(ModelConfig)}
    source.config = resolve(ModelConfig(**{k: v for k, v in manifest["model"].items() if k in fields}))
    source.step, source.manifest = int(manifest["step"]), manifest
    return source


class StepTarget:
    """A `step-…` folder in the boxes of one layout, one file per rank.

    Args:
        config: of the run that will load it; its ``parallel`` says how the files are cut.
        source: what a manifest of ours says of its run is kept.
        step: optimizer steps.
    """

    slots = SLOTS

    def __init__(self, config: RunConfig, source: Source, step: int) -> None:
        self._model = resolve(config.model)
        self._space = Space(tensors(self._model))
        self._layout = layout_of(self._model, config.parallel, config.elastic.chunk)
        kept = {key: value for key, value in source.manifest.items() if key != "files"}
        self._about = {**about_run(dataclasses.replace(config, model=self._model), step), **kept}
        self._dtype = torch.float64 if self._about["dtype"] == "float64" else torch.float32

    def shards(self) -> Sequence[Shard]:
        """A file for each rank of the layout that owns anything."""
        shards = []
        for index, rank in enumerate(self._layout.ranks):
            boxes = [(t, place.box) for t, place in saved_places(self._space, self._layout, rank)]
            items = tuple((slot, self._space.tensors[t], box) for t, box in boxes for slot in SLOTS)
            size = sum(box.numel for _, _, box in items) * self._dtype.itemsize
            shards += [Shard(f"__{index}_0.distcp", size, items)] if items else []
        return shards

    def write(self, path: Path, shard: Shard, read: Read, advance: Callable[[int], None]) -> list[Any]:
        """One rank's items; the note lists where each begins and how long it is."""
        places = []
        with path.open("wb") as stream:
            for slot, tensor, box in shard.items:
                start = stream.tell()
                save_streamed(stream, Coming(box.shape, self._dtype, self._pieces(slot, tensor, box, read)))
                stream.seek(0, 2)
                places.append([start, stream.tell() - start])
                advance(box.numel * self._dtype.itemsize)
        return places

    def finish(self, folder: Path, written: Mapping[str, Written]) -> None:
        """Which box lies where, and the manifest with its checksums."""
        items = []
        for shard in self.shards():
            for (slot, t, box), (at, length) in zip(shard.items, written[shard.name].note, strict=True):
                items.append(Saved(f"{slot}.{t.name}", shard.name, at, length, box, t.shape, self._dtype))
        write_metadata(folder, items)
        files = {name: (w.nbytes, w.crc) for name, w in written.items()}
        write_manifest(folder, self._about, {METADATA: sums_of(folder / METADATA)[:2], **files})

    def _pieces(self, slot: str, tensor: LogicalTensor, box: Box, read: Read) -> Iterator[Tensor]:
        for piece in cut(box, STAGING):
            yield read(slot, tensor, piece)


def layout_of(model: ModelConfig, parallel: ParallelConfig, chunk: int) -> Layout:
    """The configured layout on ranks 0, 1, …. Raises ValueError when it does not fit the model."""
    check_degrees(parallel)
    if parallel.ep > max(1, model.num_experts):
        raise ValueError(f"parallel.ep={parallel.ep} exceeds model.num_experts={model.num_experts}; set parallel.ep=1")
    layers = tuple(parallel.stage_layers) or split_layers(model.num_layers, parallel.pp * parallel.vp)
    check_split(model, parallel.tp, layers)
    stages = len(layers) // parallel.vp
    replicas = sum(parallel.stage_replicas) if parallel.stage_replicas else parallel.dp * stages
    ranks = range(replicas * parallel.cp * parallel.tp)
    return build_layout(parallel, layers, ranks, chunk, lambda rank: 0, model.vocab_parts)


def check_name(path: Path, step: int) -> None:
    """Whether `path` is where training looks for a checkpoint of `step`. Raises ValueError with the right name."""
    match = _STEP.fullmatch(path.name)
    if match is None or int(match[1]) != step:
        right = path.with_name(f"step-{step:08}") if match else path / f"step-{step:08}"
        raise ValueError(f"DST {path} is not named after its step; write {right}")
