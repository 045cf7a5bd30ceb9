"""DeepSpeed's ZeRO checkpoints, stages 1 to 3: fp32 masters and Adam moments from the ranks' flat partitions.

Rajbhandari et al. 2020 (arXiv:1910.02054). Stages 1 and 2 cut each group's flat buffer anywhere and list each rank's
fragments; stage 3 cuts every parameter into equal parts, the last one padded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from trainsys.interop.formats import NamedSource
from trainsys.interop.fragments import Fragments
from trainsys.interop.sums import Sums
from trainsys.interop.torch_files import StoredTensor, load_lazily

_OPTIM = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")


def open_deepspeed(path: Path) -> NamedSource:
    """A folder ``global_stepN``, or the one above with its file ``latest``.

    Raises:
        ValueError: one line, for what is missing, damaged or of a kind that cannot be read.
    """
    folder = step_folder(path, "latest")
    sums = Sums(folder)
    optim = _by_rank(folder, _OPTIM)
    if not optim:
        raise ValueError(f"{folder} has no …_optim_states.pt; name a ZeRO checkpoint's global_stepN folder")
    model = folder / _by_rank(folder, _MODEL).get(0, "mp_rank_00_model_states.pt")
    states = load_lazily(sums.mapped(model))
    ranks = [load_lazily(sums.mapped(folder / name)) for _, name in sorted(optim.items())]
    try:
        zeros = [rank["optimizer_state_dict"] for rank in ranks]
        count = zeros[0]["partition_count"]
        count = max(count) if isinstance(count, list) else count
        missing = [rank for rank in range(count) if rank not in optim]
        if missing:
            raise ValueError(
                f"{folder} was written by {count} ranks; the optimizer states of rank {missing[0]} are missing"
            )
        three = "fp32_flat_groups" in zeros[0]
        tables = _stage3(states, zeros) if three else _stage12(states, zeros)
        steps = {_number(group["step"]) for zero in zeros for group in _adam(zero)["state"].values()}
        step = int(states["global_steps"])
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"{folder} is no ZeRO checkpoint with Adam's states: {type(error).__name__} {error}") from None
    source = NamedSource(folder, tables)
    source.step = agreed_step(folder, steps, step)
    return source


def step_folder(path: Path, pointer: str) -> Path:
    """`path`, or the folder inside it that its file `pointer` names. Raises ValueError when there is none."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder")
    if not (path / pointer).is_file():
        return path
    name = (path / pointer).read_text(errors="replace").strip()
    if not name or not (path / name).is_dir():
        raise ValueError(f"{path / pointer} names {name!r}, which is missing")
    return path / name


def agreed_step(folder: Path, steps: Iterable[int], counted: int | None) -> int | None:
    """The step that all of Adam's counters and the trainer's show. Raises ValueError when they differ."""
    found = sorted({*steps} | ({counted} if counted is not None else set()))
    if len(found) > 1:
        raise ValueError(f"{folder} mixes steps {', '.join(map(str, found))}; its states are not of one moment")
    return found[0] if found else None


def _by_rank(folder: Path, pattern: re.Pattern[str]) -> dict[int, str]:
    """Data-parallel rank -> file name."""
    found = {}
    for path in folder.iterdir():
        if match := pattern.fullmatch(path.name):
            if int(match[2]):
                raise ValueError(f"{path} is a tensor-parallel part; convert it with DeepSpeed and read universal:…")
            found[int(match[1] or 0)] = path.name
    return found


def _adam(zero: Any) -> Any:
    return zero["base_optimizer_state"] if "base_optimizer_state" in zero else zero["optimizer_state_dict"]


def _number(value: Any) -> int:
    return int(value.read().item() if isinstance(value, StoredTensor) else value)


def _flat(zero: Any, masters: str, group: int) -> dict[str, StoredTensor]:
    state = _adam(zero)["state"][group]
    return {"master": zero[masters][group], "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}


def _stage12(states: Any, zeros: list[Any]) -> dict[str, dict[str, Fragments]]:
    tables: dict[str, dict[str, Fragments]] = {"master": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for group, shapes in enumerate(states["param_shapes"]):
        done = dict.fromkeys(shapes, 0)
        for zero in zeros:
            flats = _flat(zero, "single_partition_of_fp32_groups", group)
            for name, address in zero["param_slice_mappings"][group].items():
                for slot, flat in flats.items():
                    at = tables[slot].setdefault(name, Fragments(tuple(shapes[name])))
                    at.add_run(done[name], flat, address.start, address.numel)
                done[name] += address.numel
    return tables


def _stage3(states: Any, zeros: list[Any]) -> dict[str, dict[str, Fragments]]:
    tables: dict[str, dict[str, Fragments]] = {"master": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for group, shapes in enumerate(states["param_shapes"]):
        for rank, zero in enumerate(zeros):
            flats, at = _flat(zero, "fp32_flat_groups", group), 0
            for name, shape in shapes.items():
                numel = prod(shape)
                each = -(-numel // len(zeros))
                first, last = min(rank * each, numel), min((rank + 1) * each, numel)
                for slot, flat in flats.items():
                    tables[slot].setdefault(name, Fragments(tuple(shape))).add_run(first, flat, at, last - first)
                at += each
    return tables
