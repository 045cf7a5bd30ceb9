"""One conversion as the command asks for it: which source, which target, and whether they fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainsys.config import OptimConfig, RunConfig, load, named
from trainsys.elastic.kinds import KINDS, check_model, parse_address, target_class
from trainsys.elastic.step_folder import check_name
from trainsys.interop.convert import Done, ZeroMoments, check_destination, check_slots, convert
from trainsys.interop.formats import Source, Target
from trainsys.interop.naming import HF, OURS
from trainsys.models.geometry import resolve, tensors
from trainsys.space.tensor import SLOTS


class Conversion:
    """A conversion whose input is known to be right, as far as one can tell without reading every byte.

    Args:
        source, target: ``KIND:PATH``.
        overrides: YAML files and ``key=value``; ``model=FILE`` is that file.
        names: of the parameters in a universal checkpoint.
        step: where the source does not say; negative: unknown.

    Raises:
        ValueError: one line for whatever does not fit; nothing is written.

    Attributes:
        nbytes: of tensors to write.
    """

    def __init__(
        self, source: str, target: str, overrides: Sequence[str], dtype: str, names: str, shard_bytes: int, step: int,
        weights_only: bool, zero_moments: bool,
    ) -> None:  # fmt: skip
        kind, path = parse_address(source, "SRC")
        self._kind, self._destination = parse_address(target, "DST")
        made = target_class(self._kind)
        check_destination(self._destination, path)
        opened: Source = KINDS[kind].open(path)
        self._config = _run_config(opened, [a.removeprefix("model=") for a in overrides])
        check_model(opened, self._config.model)
        self.step = _step(opened, step)
        if weights_only and self._kind not in ("hf", "megatron"):
            raise ValueError(f"{self._kind}: always has Adam's moments; instead of --weights-only say --zero-moments")
        if dtype != "float32" and self._kind not in ("hf", "megatron"):
            raise ValueError(f"{self._kind}: keeps fp32 state; --dtype {dtype} is for hf and megatron")
        weights_only = weights_only or self._kind == "hf"
        self._source = opened
        if zero_moments and not weights_only:
            self._source = ZeroMoments(opened)
        _check_dtypes(self._source, self._config, self._kind, weights_only)
        self._options = {
            "kind": self._kind, "dtype": dtype, "names": names, "shard_bytes": shard_bytes, "step": self.step,
            "weights_only": weights_only, "zero_moments": zero_moments, "overrides": list(overrides),
        }  # fmt: skip
        self._target: Target = self._made(
            made, getattr(torch, dtype), HF if names == "hf" else OURS, shard_bytes, weights_only
        )
        self.nbytes = sum(shard.nbytes for shard in self._target.shards())

    def _made(self, made: Callable[..., Any], dtype: torch.dtype, naming: Any, shard_bytes: int, bare: bool) -> Target:
        model = resolve(self._config.model)
        target: Target
        check_slots(self._source, ("master",) if bare else SLOTS)
        if self._kind == "hf":
            target = made(model, dtype, shard_bytes)
        elif self._kind == "universal":
            target = made(model, naming, self._needed_step())
        elif self._kind == "megatron":
            step = 0 if bare and self.step is None else self._needed_step()
            target = made(model, dtype, step, not bare, _optim(self._source, self._config), self._config.parallel.ep)
        else:
            check_name(self._destination, self._needed_step())
            target = made(self._config, self._source, self._needed_step())
        return target

    def _needed_step(self) -> int:
        if self.step is None:
            if not isinstance(self._source, ZeroMoments):
                raise ValueError(f"{self._source.path} does not say its step, which Adam needs; set --step N")
            self.step = 0
        return self.step

    def run(self, advance: Callable[[int, str], None]) -> Done:
        """Convert; `advance` is told of bytes and files. Raises ValueError, one line."""
        return convert(self._source, self._target, self._destination, self._options, advance)


def _run_config(source: Source, overrides: list[str]) -> RunConfig:
    """The overrides over the defaults, with the architecture of the source where it has one."""
    config = load(overrides)
    model_named = any(key.startswith("model.") for key in named(overrides))
    if source.manifest:
        for key in (a.partition("=")[0] for a in overrides if "=" in a):
            if not key.startswith("parallel."):
                raise ValueError(f"{key} cannot be changed: {source.path} says it itself; only parallel.KEY can be set")
    if source.config is None and not model_named:
        raise ValueError(f"{source.path} does not name its architecture; add a YAML file or model.KEY=value")
    return config if source.config is None or model_named else dataclasses.replace(config, model=source.config)


def _optim(source: Source, config: RunConfig) -> OptimConfig:
    """The optimizer's settings: those of a checkpoint of ours, else the configured ones."""
    settings = source.manifest.get("settings", {})
    known = {f.name for f in dataclasses.fields(OptimConfig)}
    saved = {key.removeprefix("optim."): value for key, value in settings.items() if key.startswith("optim.")}
    saved = {key: tuple(v) if isinstance(v, list) else v for key, v in saved.items() if key in known}
    return dataclasses.replace(config.optim, **saved)


def _step(source: Source, given: int) -> int | None:
    if given < 0:
        return source.step
    if source.step is not None and source.step != given:
        raise ValueError(f"--step {given}, but {source.path} is of step {source.step}")
    return given


def _check_dtypes(source: Source, config: RunConfig, kind: str, bare: bool) -> None:
    """Whether the stored numbers can stand for what the target keeps. Raises ValueError."""
    own = source.manifest.get("dtype") or config.train.dtype
    needed = ("master",) if bare else SLOTS
    for slot in [s for s in source.slots if s in needed]:
        for tensor in tensors(config.model):
            dtype = source.dtype(slot, tensor)
            what = f"{source.path}: {slot} of {tensor.name} is {str(dtype).removeprefix('torch.')}"
            if not dtype.is_floating_point or dtype.itemsize < 2:
                raise ValueError(f"{what}; float64, float32, bfloat16 and float16 can be converted")
            if not bare and not isinstance(source, ZeroMoments) and dtype.itemsize < 4:
                raise ValueError(f"{what}, no fp32 state to train on from; --zero-moments begins anew from its weights")
            if dtype == torch.float64 and not bare and own != "float64" and kind == "dcp":
                raise ValueError(f"{what}, more than this run keeps; set train.dtype=float64")
