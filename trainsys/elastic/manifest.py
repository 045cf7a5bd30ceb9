"""Checkpoint folders: named by step, complete or absent, checksummed.

A checkpoint is written under a hidden name (``.step-….partial``) and renamed once its manifest stands, so a reader sees
whole checkpoints only; `find_checkpoint` still verifies every byte and falls back to the one before.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainsys.config import BatchConfig, ModelConfig, RunConfig, to_dict
from trainsys.interop.disk import sync
from trainsys.models.geometry import resolve

MANIFEST = "trainsys.json"
_DIGITS = 8


def checkpoint_dir(config: RunConfig) -> Path:
    return Path(config.checkpoint.dir) if config.checkpoint.dir else Path(config.run_dir) / "checkpoints"


def folder_of(config: RunConfig, step: int) -> Path:
    """Where the checkpoint of `step` optimizer steps goes."""
    return checkpoint_dir(config) / f"step-{step:0{_DIGITS}}"


def partial_of(folder: Path) -> Path:
    """Where it is written until it is complete."""
    return folder.with_name(f".{folder.name}.partial")


def saved_steps(config: RunConfig) -> dict[int, Path]:
    """Finished checkpoints, whole or not, by step, the newest first."""
    found = {}
    for folder in checkpoint_dir(config).glob("step-*"):
        digits = folder.name.removeprefix("step-")
        if digits.isdecimal() and folder.is_dir():
            found[int(digits)] = folder
    return dict(sorted(found.items(), reverse=True))


# -- write -----------------------------------------------------------------------------------------------------------


def remove_partial(config: RunConfig) -> None:
    """Remove what interrupted saves left."""
    for folder in checkpoint_dir(config).glob(".step-*.partial"):
        shutil.rmtree(folder, ignore_errors=True)


def complete(config: RunConfig, step: int) -> None:
    """Checksums and progress beside the data, then the rename that makes the checkpoint exist.

    Of those up to this one the newest ``checkpoint.keep`` stay.

    Raises:
        OSError: the partial folder is still there.
    """
    final = folder_of(config, step)
    temporary = partial_of(final)
    files = {f.name: (f.stat().st_size, _crc(f)) for f in sorted(temporary.iterdir())}
    write_manifest(temporary, about_run(config, step), files)
    if final.exists():
        final.rename(partial_of(final.with_name(f"{final.name}.old")))
    temporary.rename(final)
    sync(final.parent)
    remove_partial(config)
    for folder in [f for s, f in saved_steps(config).items() if s <= step][config.checkpoint.keep :]:
        shutil.rmtree(folder, ignore_errors=True)


def about_run(config: RunConfig, step: int) -> dict[str, Any]:
    """What a manifest says of the run."""
    return {
        "step": step,
        "position": step * config.batch.global_size,
        "seed": config.train.seed,
        "steps": config.train.steps,
        "model": to_dict(resolve(config.model)),
        "batch": to_dict(config.batch),
        "dtype": config.train.dtype,
        "settings": _settings(config),
    }


def write_manifest(folder: Path, about: Mapping[str, Any], files: Mapping[str, tuple[int, int]]) -> None:
    """Say what is in `folder`; `files` are size and crc32 by name. Raises OSError."""
    manifest = {**about, "files": {name: list(known) for name, known in files.items()}}
    with (folder / MANIFEST).open("w") as stream:
        json.dump({**manifest, "crc": _crc_of(manifest)}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _crc_of(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


# -- find ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint (path empty: none).

    Attributes:
        step: optimizer steps in it.
        rejected: what is wrong with newer ones.
        planned_steps: ``train.steps`` of the run that wrote it; 0: no checkpoint.
        changed: settings that may differ, and do: ``optim.lr 0.003 → 0.1``.
    """

    path: str = ""
    step: int = 0
    rejected: tuple[str, ...] = ()
    planned_steps: int = 0
    changed: tuple[str, ...] = ()


def find_checkpoint(config: RunConfig) -> Found:
    """Newest checkpoint whose files are all there with the right sizes and checksums.

    Raises:
        ValueError: all are damaged, or the newest whole one is of another model, batch or seed; names the first key
            that differs.
    """
    rejected = []
    for step, folder in saved_steps(config).items():
        try:
            manifest = _verified(folder, step)
        except (OSError, ValueError) as error:
            reason = f"{Path(error.filename).name} is missing" if isinstance(error, FileNotFoundError) else str(error)
            rejected.append(f"{folder.name}: {' '.join(reason.split())}")
            continue
        _check_same(config, folder, manifest)
        return Found(str(folder), step, tuple(rejected), int(manifest["steps"]), _changed(config, manifest))
    if rejected:
        raise ValueError(
            f"no checkpoint in {checkpoint_dir(config)} is whole ({'; '.join(rejected)}); restore one, or set "
            "checkpoint.resume=false to start over from step 0"
        )
    return Found()


def read_manifest(folder: Path) -> dict[str, Any]:
    """What one checkpoint folder says of itself; its files are there, their contents not yet verified.

    Raises:
        ValueError: one line, for a folder that is no checkpoint or a damaged one.
    """
    name, _, step = folder.name.partition("-")
    if name != "step" or not step.isdigit() or not folder.is_dir():
        raise ValueError(f"{folder} is no checkpoint folder; name one like RUN_DIR/checkpoints/step-00000040")
    try:
        return _complete(folder, int(step))
    except OSError as error:
        raise ValueError(f"{folder}: {Path(error.filename).name} is missing") from None
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def set_aside(config: RunConfig, found: Found) -> None:
    """Rename the damaged checkpoints that `found` passed over, so that they do not count as kept ones."""
    for step, folder in saved_steps(config).items():
        if step > found.step:
            _rename(folder, "damaged")


def retire(config: RunConfig) -> None:
    """Rename every checkpoint of an earlier history: the run that starts over must never fall back to one."""
    for folder in saved_steps(config).values():
        _rename(folder, "old")


def _rename(folder: Path, suffix: str) -> None:
    """``step-00000040`` becomes ``step-00000040.old``, in place of an earlier one of that name."""
    new = folder.with_name(f"{folder.name}.{suffix}")
    shutil.rmtree(new, ignore_errors=True)
    folder.rename(new)


def _verified(folder: Path, step: int) -> dict[str, Any]:
    """The manifest of a whole checkpoint. Raises OSError or ValueError otherwise."""
    manifest = _complete(folder, step)
    for name, (_, crc) in manifest["files"].items():
        if _crc(folder / name) != crc:
            raise ValueError(f"{name} is damaged")
    return manifest


def _complete(folder: Path, step: int) -> dict[str, Any]:
    """The manifest of a folder whose files have their sizes. Raises OSError or ValueError otherwise."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        whole = manifest.pop("crc") == _crc_of(manifest) and manifest["step"] == step
    except (ValueError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{MANIFEST} is damaged")
    for name, (size, _) in manifest["files"].items():
        if (folder / name).stat().st_size != size:
            raise ValueError(f"{name} has {(folder / name).stat().st_size} of {size} bytes")
    found: dict[str, Any] = manifest
    return found


def _settings(config: RunConfig) -> dict[str, Any]:
    """What else decides the numbers, by key."""
    return {
        **{f"data.{key}": value for key, value in to_dict(config.data).items() if key != "cache_dir"},
        **{f"optim.{key}": list(v) if isinstance(v, tuple) else v for key, v in to_dict(config.optim).items()},
        "elastic.chunk": config.elastic.chunk,
        "parallel.reduction": config.parallel.reduction,
        "parallel.vocabulary": config.parallel.vocabulary,
    }


def _changed(config: RunConfig, manifest: dict[str, Any]) -> tuple[str, ...]:
    theirs = manifest.get("settings", {})
    return tuple(
        f"{key} {theirs[key]} → {value}"
        for key, value in _settings(config).items()
        if key in theirs and theirs[key] != value
    )


def _batch(manifest: dict[str, Any]) -> BatchConfig:
    """As it was; keys that are younger than the manifest have their defaults."""
    values: Iterable[tuple[str, Any]] = manifest["batch"].items()
    kept: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values}
    return BatchConfig(**kept)


def _check_same(config: RunConfig, folder: Path, manifest: dict[str, Any]) -> None:
    """Whether the run that wrote `manifest` computes the same numbers as `config`. Raises ValueError."""
    ours = {
        **{f"model.{key}": value for key, value in to_dict(resolve(config.model)).items()},
        **{f"batch.{key}": value for key, value in to_dict(config.batch).items()},
        "train.seed": config.train.seed,
        "train.dtype": config.train.dtype,
    }
    known = {f.name for f in dataclasses.fields(ModelConfig)}  # a manifest lacks the keys that are younger than itself
    model = resolve(ModelConfig(**{key: value for key, value in manifest["model"].items() if key in known}))
    fixed = ("data.tokenizer", "elastic.chunk")  # a position counts tokens of this kind; hashes and norms, these chunks
    settings = {key: value for key, value in manifest.get("settings", {}).items() if key in fixed}
    ours |= {key: _settings(config)[key] for key in settings}
    theirs = {
        **settings,
        **{f"model.{key}": value for key, value in to_dict(model).items()},
        **{f"batch.{key}": value for key, value in to_dict(_batch(manifest)).items()},
        "train.seed": manifest["seed"],
        "train.dtype": manifest["dtype"],
    }
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise ValueError(
                f"checkpoint {folder} was made with {key}={theirs.get(key)}, this run has {value}; set "
                f"{key}={theirs.get(key)}, checkpoint.resume=false or another run_dir"
            )
